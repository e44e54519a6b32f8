"""What a request could reuse on each replica, and which replica it should go to."""
