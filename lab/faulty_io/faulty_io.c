/* System calls on one directory that fail when they are told to.
 *
 * A library for LD_PRELOAD. It stands before libc's file calls and passes everything on, except calls on
 * paths below FAULTY_IO_DIRECTORY and on descriptors that were opened there: those ask the rules in the
 * file FAULTY_IO_CONTROL, which is mapped shared, so that whoever wrote them may change them while the
 * process runs. The layout of that file is told once more in control.py; MAGIC changes with it.
 *
 * What it cannot see: raw system calls (io_uring, syscall()), libc's own streams (fopen), and libraries
 * that were linked with a libc of their own.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x46494f31u /* "FIO1" */
#define BANKS 8
#define RULES 32
#define TRACES 8192
#define DESCRIPTORS 65536
#define ROOM 240

enum call { OPEN, READ, WRITE, CLOSE, FSYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, STAT, ACCESS, LIST,
            UTIME, TRUNCATE, CALLS };
enum action { FAIL, FAIL_AFTER, SHORT, DELAY, HANG, KILL_BEFORE, KILL_AFTER, FLIP, LOSE };

struct rule {
    uint64_t calls; /* bit per call */
    uint32_t action;
    int32_t error;
    uint64_t after;     /* so many matching calls pass */
    uint64_t times;     /* so many are met */
    uint64_t threshold; /* probability, of 2^32 */
    uint64_t seed;
    uint64_t delay_ns;
    uint64_t most; /* bytes of a short read or write */
    _Atomic uint64_t matched;
    _Atomic uint64_t met;
    char path[112]; /* fnmatch pattern on the path below the directory */
};

struct bank {
    uint64_t count;
    struct rule rules[RULES];
};

struct trace {
    _Atomic uint64_t done; /* 1 when the entry is whole */
    uint32_t call;
    int32_t error;
    uint64_t bytes; /* of a read or write that succeeded */
    char path[ROOM];
};

struct control {
    uint32_t magic;
    _Atomic uint32_t tracing;
    _Atomic uint64_t generation; /* bank generation % BANKS holds */
    _Atomic int64_t clock_ns;    /* added to the wall clock that Python sees */
    _Atomic uint64_t traced;
    _Atomic uint64_t seen[CALLS];
    struct bank banks[BANKS];
    struct trace traces[TRACES];
};

static struct control *control;
static char directory[PATH_MAX];
static size_t directory_length;

/* Path below the directory of each descriptor that was opened there; empty for all others. */
static char known[DESCRIPTORS][ROOM];

static struct { uintptr_t low, high; } python[8];
static int pythons;

static int find_python(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    const char *base = strrchr(info->dlpi_name, '/');
    base = base ? base + 1 : info->dlpi_name;
    if (*base && strncmp(base, "libpython", 9)) return 0; /* the program itself has no name here */
    for (int i = 0; i < info->dlpi_phnum && pythons < 8; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        python[pythons].low = info->dlpi_addr + part->p_vaddr;
        python[pythons++].high = info->dlpi_addr + part->p_vaddr + part->p_memsz;
    }
    return 0;
}

#define REAL(type, name, ...)                                                              \
    static type (*real)(__VA_ARGS__);                                                      \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);                       \
    if (!real) { errno = ENOSYS; return (type)-1; }

static int real_open(const char *path, int flags) {
    REAL(int, open64, const char *, int, ...)
    return real(path, flags);
}

static int real_close(int fd) {
    REAL(int, close, int)
    return real(fd);
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("FAULTY_IO_DIRECTORY"), *file = getenv("FAULTY_IO_CONTROL");
    if (!where || !file || strlen(where) >= sizeof directory) return;
    int fd = real_open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    struct stat status;
    void *at = MAP_FAILED;
    if (!fstat(fd, &status) && (size_t)status.st_size >= sizeof(struct control))
        at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    real_close(fd);
    if (at == MAP_FAILED || ((struct control *)at)->magic != MAGIC) {
        fprintf(stderr, "faulty_io: %s is no control file of this version\n", file);
        return;
    }
    strcpy(directory, where);
    directory_length = strlen(directory);
    dl_iterate_phdr(find_python, NULL);
    control = at;
}

/* ---- which calls are ours ---- */

/* The path below the directory ("." for itself), or NULL. `room` holds ROOM bytes. */
static const char *below(int at, const char *path, char *room) {
    char whole[PATH_MAX];
    int fd, end;
    if (!control || !path) return NULL;
    /* A descriptor that is opened anew, or gets a name, by what the system calls it. */
    if (sscanf(path, "/proc/self/fd/%d%n", &fd, &end) == 1 && !path[end]) {
        if (fd < 0 || fd >= DESCRIPTORS || !known[fd][0]) return NULL;
        snprintf(room, ROOM, "%s", known[fd]);
        return room;
    }
    if (path[0] != '/') {
        if (at >= 0 && at < DESCRIPTORS && known[at][0]) {
            const char *under = known[at];
            int n = !strcmp(under, ".") ? snprintf(room, ROOM, "%s", *path ? path : ".")
                    : !*path            ? snprintf(room, ROOM, "%s", under)
                                        : snprintf(room, ROOM, "%s/%s", under, path);
            return n > 0 ? room : NULL;
        }
        if (at != AT_FDCWD || !getcwd(whole, sizeof whole)) return NULL;
        if (strlen(whole) + strlen(path) + 2 > sizeof whole) return NULL;
        strcat(strcat(whole, "/"), path);
        path = whole;
    }
    if (strncmp(path, directory, directory_length)) return NULL;
    path += directory_length;
    if (*path && *path != '/') return NULL;
    while (*path == '/') path++;
    snprintf(room, ROOM, "%s", *path ? path : ".");
    return room;
}

static const char *of_fd(int fd) {
    return control && fd >= 0 && fd < DESCRIPTORS && known[fd][0] ? known[fd] : NULL;
}

static void opened(int fd, const char *path) {
    if (control && fd >= 0 && fd < DESCRIPTORS) {
        if (path) snprintf(known[fd], ROOM, "%s", path);
        else known[fd][0] = 0;
    }
}

/* ---- what happens to them ---- */

struct plan {
    enum call call;
    char path[ROOM];
    int error;      /* fail with it, without the call */
    int late_error; /* fail with it, after the call */
    size_t most;
    bool lose, kill;
    uint64_t flip; /* random number, or 0 */
};

static uint64_t mix(uint64_t x) { /* splitmix64, Steele, Lea and Flood 2014 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void sleep_ns(uint64_t ns) {
    struct timespec left = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

/* Whether a rule meets this call; its counters are kept here. */
static bool meets(struct rule *rule, uint64_t *number) {
    *number = atomic_fetch_add(&rule->matched, 1);
    if (*number < rule->after) return false;
    if (mix(rule->seed ^ mix(*number)) >> 32 >= rule->threshold) return false;
    uint64_t met = atomic_load(&rule->met);
    do {
        if (met >= rule->times) return false;
    } while (!atomic_compare_exchange_weak(&rule->met, &met, met + 1));
    return true;
}

/* Ask the rules; delays, hangs and dies where they say so. False: fail with `plan->error`. */
static bool allowed(struct plan *plan, enum call call, const char *path) {
    int kept = errno;
    memset(plan, 0, sizeof *plan);
    plan->call = call;
    plan->most = SIZE_MAX;
    snprintf(plan->path, ROOM, "%s", path);
    atomic_fetch_add(&control->seen[call], 1);
    uint64_t generation = atomic_load(&control->generation), number;
    struct bank *bank = &control->banks[generation % BANKS];
    for (uint64_t i = 0; i < bank->count && i < RULES && !plan->error; i++) {
        struct rule *rule = &bank->rules[i];
        if (!(rule->calls >> call & 1) || fnmatch(rule->path, plan->path, 0)) continue;
        if (!meets(rule, &number)) continue;
        switch (rule->action) {
        case FAIL: plan->error = rule->error; break;
        case FAIL_AFTER: plan->late_error = rule->error; break;
        case SHORT: plan->most = rule->most; break;
        case DELAY: sleep_ns(rule->delay_ns); break;
        case HANG:
            while (atomic_load(&control->generation) == generation) sleep_ns(2000000);
            break;
        case KILL_BEFORE: kill(getpid(), SIGKILL); pause(); break;
        case KILL_AFTER: plan->kill = true; break;
        case FLIP: plan->flip = mix(rule->seed + number) | 1; break;
        case LOSE: plan->lose = true; break;
        }
    }
    errno = kept;
    return !plan->error;
}

static void note(const struct plan *plan, long result, int error) {
    if (!atomic_load(&control->tracing)) return;
    uint64_t at = atomic_fetch_add(&control->traced, 1);
    if (at >= TRACES) return;
    struct trace *trace = &control->traces[at];
    trace->call = plan->call;
    trace->error = error;
    trace->bytes = (plan->call == READ || plan->call == WRITE) && result > 0 ? (uint64_t)result : 0;
    snprintf(trace->path, sizeof trace->path, "%s", plan->path);
    atomic_store(&trace->done, 1);
}

/* What the caller gets to see of a call that was made, or refused. */
static long finish(struct plan *plan, long result) {
    int error = plan->error ? plan->error : result < 0 ? errno : plan->late_error;
    if (plan->kill) {
        kill(getpid(), SIGKILL);
        pause();
    }
    note(plan, result, error);
    if (error) {
        errno = error;
        return -1;
    }
    return result;
}

static void flip(const struct iovec *parts, int count, long nbytes, uint64_t random) {
    if (nbytes <= 0) return;
    uint64_t at = (random >> 3) % (uint64_t)nbytes;
    for (int i = 0; i < count; at -= parts[i++].iov_len)
        if (at < parts[i].iov_len) {
            ((unsigned char *)parts[i].iov_base)[at] ^= (unsigned char)(1u << (random & 7u));
            return;
        }
}

/* ---- the calls ---- */

#define PATH_CALL(type, name, call, at, path, parameters, arguments)                       \
    type name parameters {                                                                 \
        static type(*real) parameters;                                                     \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                     \
        if (!real) { errno = ENOSYS; return -1; }                                          \
        char room[ROOM];                                                                   \
        const char *found = below(at, path, room);                                         \
        if (!found) return real arguments;                                                 \
        struct plan plan;                                                                  \
        long result = -1;                                                                  \
        if (allowed(&plan, call, found)) result = real arguments;                          \
        return (type)finish(&plan, result);                                                \
    }

#define FD_CALL(type, name, call, fd, parameters, arguments)                               \
    type name parameters {                                                                 \
        static type(*real) parameters;                                                     \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                     \
        if (!real) { errno = ENOSYS; return -1; }                                          \
        const char *found = of_fd(fd);                                                     \
        if (!found) return real arguments;                                                 \
        struct plan plan;                                                                  \
        long result = -1;                                                                  \
        if (allowed(&plan, call, found)) result = real arguments;                          \
        return (type)finish(&plan, result);                                                \
    }

/* Of two paths the rules see the new one, or the one that is ours. */
#define TWO_PATHS(name, call, at, path, new_at, new_path, parameters, arguments)           \
    int name parameters {                                                                  \
        static int(*real) parameters;                                                      \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                      \
        if (!real) { errno = ENOSYS; return -1; }                                          \
        char room[ROOM];                                                                   \
        const char *found = below(new_at, new_path, room);                                 \
        if (!found) found = below(at, path, room);                                         \
        if (!found) return real arguments;                                                 \
        struct plan plan;                                                                  \
        long result = -1;                                                                  \
        if (allowed(&plan, call, found)) result = real arguments;                          \
        return (int)finish(&plan, result);                                                 \
    }

#define OPENING(name, at, parameters, arguments)                                           \
    int name parameters {                                                                  \
        static int(*real) parameters;                                                      \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                      \
        if (!real) { errno = ENOSYS; return -1; }                                          \
        mode_t mode = 0;                                                                   \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                         \
            va_list more;                                                                  \
            va_start(more, flags);                                                         \
            mode = va_arg(more, mode_t);                                                   \
            va_end(more);                                                                  \
        }                                                                                  \
        char room[ROOM];                                                                   \
        const char *found = below(at, path, room);                                         \
        if (!found) {                                                                      \
            int fd = real arguments;                                                       \
            opened(fd, NULL);                                                              \
            return fd;                                                                     \
        }                                                                                  \
        struct plan plan;                                                                  \
        int fd = -1;                                                                       \
        if (allowed(&plan, OPEN, found)) fd = real arguments;                              \
        if (fd >= 0 && plan.late_error) real_close(fd);                                    \
        else opened(fd, found);                                                            \
        return (int)finish(&plan, fd);                                                     \
    }

OPENING(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, at, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPENING(openat64, at, (int at, const char *path, int flags, ...), (at, path, flags, mode))

/* A close that fails has closed, as on Linux. */
int close(int fd) {
    const char *found = of_fd(fd);
    if (!found) return real_close(fd);
    struct plan plan;
    bool fine = allowed(&plan, CLOSE, found);
    known[fd][0] = 0;
    int result = real_close(fd);
    return (int)finish(&plan, fine ? result : -1);
}

/* Reads and writes: at most `plan.most` bytes of the parts, in a copy of the vector. */
#define SHORTEST 1024
static int shorten(const struct iovec *parts, int count, size_t most, struct iovec *into) {
    int n = 0;
    for (; n < count && n < SHORTEST && most; n++) {
        into[n] = parts[n];
        if (into[n].iov_len > most) into[n].iov_len = most;
        most -= into[n].iov_len;
    }
    return n ? n : count;
}

static long total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return (long)sum;
}

#define TRANSFER(name, call, parts, count, parameters, plain, vectored)                    \
    ssize_t name parameters {                                                              \
        static ssize_t(*real) parameters;                                                  \
        if (!real) real = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);                  \
        if (!real) { errno = ENOSYS; return -1; }                                          \
        const char *found = of_fd(fd);                                                     \
        if (!found) return real plain;                                                     \
        struct plan plan;                                                                  \
        long result = -1;                                                                  \
        if (allowed(&plan, call, found)) {                                                 \
            if (plan.lose && call == WRITE) {                                              \
                result = total(parts, count);                                              \
            } else if (plan.most == SIZE_MAX) {                                            \
                result = real plain;                                                       \
            } else {                                                                       \
                struct iovec fewer[SHORTEST];                                              \
                int some = shorten(parts, count, plan.most, fewer);                        \
                (void)some;                                                                \
                result = real vectored;                                                    \
            }                                                                              \
            if (plan.flip && call == READ) flip(parts, count, result, plan.flip);          \
        }                                                                                  \
        return finish(&plan, result);                                                      \
    }

#define ONE (&(struct iovec){(void *)data, size})
#define FEWER fewer[0].iov_len
#define V const struct iovec *parts, int count
TRANSFER(read, READ, ONE, 1, (int fd, void *data, size_t size), (fd, data, size), (fd, data, FEWER))
TRANSFER(write, WRITE, ONE, 1, (int fd, const void *data, size_t size), (fd, data, size),
         (fd, data, FEWER))
TRANSFER(pread, READ, ONE, 1, (int fd, void *data, size_t size, off_t at), (fd, data, size, at),
         (fd, data, FEWER, at))
TRANSFER(pread64, READ, ONE, 1, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at),
         (fd, data, FEWER, at))
TRANSFER(pwrite, WRITE, ONE, 1, (int fd, const void *data, size_t size, off_t at),
         (fd, data, size, at), (fd, data, FEWER, at))
TRANSFER(pwrite64, WRITE, ONE, 1, (int fd, const void *data, size_t size, off64_t at),
         (fd, data, size, at), (fd, data, FEWER, at))
TRANSFER(readv, READ, parts, count, (int fd, V), (fd, parts, count), (fd, fewer, some))
TRANSFER(writev, WRITE, parts, count, (int fd, V), (fd, parts, count), (fd, fewer, some))
TRANSFER(preadv, READ, parts, count, (int fd, V, off_t at), (fd, parts, count, at),
         (fd, fewer, some, at))
TRANSFER(preadv64, READ, parts, count, (int fd, V, off64_t at), (fd, parts, count, at),
         (fd, fewer, some, at))
TRANSFER(pwritev, WRITE, parts, count, (int fd, V, off_t at), (fd, parts, count, at),
         (fd, fewer, some, at))
TRANSFER(pwritev64, WRITE, parts, count, (int fd, V, off64_t at), (fd, parts, count, at),
         (fd, fewer, some, at))
TRANSFER(preadv2, READ, parts, count, (int fd, V, off_t at, int flags), (fd, parts, count, at, flags),
         (fd, fewer, some, at, flags))
TRANSFER(preadv64v2, READ, parts, count, (int fd, V, off64_t at, int flags),
         (fd, parts, count, at, flags), (fd, fewer, some, at, flags))
TRANSFER(pwritev2, WRITE, parts, count, (int fd, V, off_t at, int flags),
         (fd, parts, count, at, flags), (fd, fewer, some, at, flags))
TRANSFER(pwritev64v2, WRITE, parts, count, (int fd, V, off64_t at, int flags),
         (fd, parts, count, at, flags), (fd, fewer, some, at, flags))

FD_CALL(int, fsync, FSYNC, fd, (int fd), (fd))
FD_CALL(int, fdatasync, FSYNC, fd, (int fd), (fd))
FD_CALL(int, ftruncate, TRUNCATE, fd, (int fd, off_t size), (fd, size))
FD_CALL(int, ftruncate64, TRUNCATE, fd, (int fd, off64_t size), (fd, size))
FD_CALL(int, futimens, UTIME, fd, (int fd, const struct timespec times[2]), (fd, times))
FD_CALL(int, fstat, STAT, fd, (int fd, struct stat *into), (fd, into))
FD_CALL(int, fstat64, STAT, fd, (int fd, struct stat64 *into), (fd, into))
FD_CALL(int, __fxstat, STAT, fd, (int version, int fd, struct stat *into), (version, fd, into))
FD_CALL(int, __fxstat64, STAT, fd, (int version, int fd, struct stat64 *into), (version, fd, into))

/* posix_fallocate returns its error. */
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(int, posix_fallocate64, int, off64_t, off64_t)
    const char *found = of_fd(fd);
    if (!found) return real(fd, at, size);
    struct plan plan;
    int error = allowed(&plan, TRUNCATE, found) ? real(fd, at, size) : 0;
    if (error) errno = error;
    return finish(&plan, error ? -1 : 0) < 0 ? errno : 0;
}

#define AT(name, call, at, path, parameters, arguments) \
    PATH_CALL(int, name, call, at, path, parameters, arguments)
AT(stat, STAT, AT_FDCWD, path, (const char *path, struct stat *into), (path, into))
AT(stat64, STAT, AT_FDCWD, path, (const char *path, struct stat64 *into), (path, into))
AT(lstat, STAT, AT_FDCWD, path, (const char *path, struct stat *into), (path, into))
AT(lstat64, STAT, AT_FDCWD, path, (const char *path, struct stat64 *into), (path, into))
AT(fstatat, STAT, at, path, (int at, const char *path, struct stat *into, int flags),
   (at, path, into, flags))
AT(fstatat64, STAT, at, path, (int at, const char *path, struct stat64 *into, int flags),
   (at, path, into, flags))
AT(statx, STAT, at, path, (int at, const char *path, int flags, unsigned mask, struct statx *into),
   (at, path, flags, mask, into))
AT(__xstat, STAT, AT_FDCWD, path, (int version, const char *path, struct stat *into),
   (version, path, into))
AT(__xstat64, STAT, AT_FDCWD, path, (int version, const char *path, struct stat64 *into),
   (version, path, into))
AT(__lxstat, STAT, AT_FDCWD, path, (int version, const char *path, struct stat *into),
   (version, path, into))
AT(__lxstat64, STAT, AT_FDCWD, path, (int version, const char *path, struct stat64 *into),
   (version, path, into))
AT(__fxstatat, STAT, at, path, (int version, int at, const char *path, struct stat *into, int flags),
   (version, at, path, into, flags))
AT(__fxstatat64, STAT, at, path,
   (int version, int at, const char *path, struct stat64 *into, int flags),
   (version, at, path, into, flags))
AT(access, ACCESS, AT_FDCWD, path, (const char *path, int mode), (path, mode))
AT(faccessat, ACCESS, at, path, (int at, const char *path, int mode, int flags),
   (at, path, mode, flags))
AT(unlink, UNLINK, AT_FDCWD, path, (const char *path), (path))
AT(unlinkat, flags & AT_REMOVEDIR ? RMDIR : UNLINK, at, path, (int at, const char *path, int flags),
   (at, path, flags))
AT(mkdir, MKDIR, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
AT(mkdirat, MKDIR, at, path, (int at, const char *path, mode_t mode), (at, path, mode))
AT(rmdir, RMDIR, AT_FDCWD, path, (const char *path), (path))
AT(utimensat, UTIME, at, path,
   (int at, const char *path, const struct timespec times[2], int flags), (at, path, times, flags))
AT(truncate, TRUNCATE, AT_FDCWD, path, (const char *path, off_t size), (path, size))
AT(truncate64, TRUNCATE, AT_FDCWD, path, (const char *path, off64_t size), (path, size))

TWO_PATHS(rename, RENAME, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))
TWO_PATHS(renameat, RENAME, at, from, new_at, to,
          (int at, const char *from, int new_at, const char *to), (at, from, new_at, to))
TWO_PATHS(renameat2, RENAME, at, from, new_at, to,
          (int at, const char *from, int new_at, const char *to, unsigned flags),
          (at, from, new_at, to, flags))
TWO_PATHS(link, LINK, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))
TWO_PATHS(linkat, LINK, at, from, new_at, to,
          (int at, const char *from, int new_at, const char *to, int flags),
          (at, from, new_at, to, flags))
TWO_PATHS(symlink, LINK, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))

DIR *opendir(const char *path) {
    static DIR *(*real)(const char *);
    if (!real) real = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    char room[ROOM];
    const char *found = below(AT_FDCWD, path, room);
    if (!found) return real(path);
    struct plan plan;
    DIR *result = allowed(&plan, LIST, found) ? real(path) : NULL;
    if (finish(&plan, result ? 0 : -1) < 0) {
        int kept = errno;
        if (result) closedir(result);
        errno = kept;
        return NULL;
    }
    return result;
}

/* ---- the wall clock, for Python alone: libraries' absolute deadlines are for the kernel's ---- */

static bool for_python(uintptr_t caller) {
    for (int i = 0; i < pythons; i++)
        if (caller >= python[i].low && caller < python[i].high) return true;
    return false;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *)
    int result = real(clock, now);
    if (result || !control || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return result;
    int64_t shift = atomic_load(&control->clock_ns);
    if (!shift || !for_python((uintptr_t)__builtin_return_address(0))) return result;
    int64_t sum = now->tv_nsec + shift % 1000000000;
    now->tv_sec += shift / 1000000000 + (sum < 0 ? -1 : sum / 1000000000);
    now->tv_nsec = sum < 0 ? sum + 1000000000 : sum % 1000000000;
    return result;
}
