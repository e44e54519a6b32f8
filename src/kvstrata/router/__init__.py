"""The router: one OpenAI endpoint in front of several engines; the only importer of the web stack."""
