/* A layer between a process and the C library that counts, tells of, and spoils its calls to the file system.

   Loaded with LD_PRELOAD into the agent and, since the environment goes on, into its workers. Only paths below one
   folder matter. Every call is named by who makes it (FAULTS_ROLE, or "worker"), what it does ("open", "write", ...),
   to what ("cache/tmp/K.*"; keys and random parts have fixed names, so that the same work has the same names each
   time), and how often that process has done so before. What a worker reports to its parent counts as a call
   "phase", so that steps without files can be hit too.

   FAULTS_ROOT   the folder, without links and without a slash at its end
   FAULTS_TRACE  the file that gets one line for each call: role, process, call, path, number, phase
   FAULTS_STATE  a file of 64 bytes that all processes of one run share
   FAULTS_KEYS   "NAME=64 hex digits,...": how keys of the cache are shown; any other is "?"
   FAULTS_AT     role, call, path and number of the call to spoil, with a tab between each; empty: none
   FAULTS_DO     kill | kill-parent | torn | short | slow:MS | errno:N | full | readonly

   "full" and "readonly" last: from that call on the disk of "home/" is so for all processes of the run.
   The layer's own work goes past the C library, by system calls. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 1024
#define MOST_NAMES 4096
#define HEX_OF_KEY 64

enum { TAKES_ROOM = 1, CHANGES = 2 };
enum { SOUND = 0, FULL = 1, READ_ONLY = 2 };

struct shared {
    int fired;
    int disk;
};

struct counter {
    char *name;
    int count;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct counter counters[MOST_NAMES];
static int names_known;
static char phase[32] = "-";
static struct shared *shared;
static const char *root, *role, *keys, *at, *deed;
static size_t root_length;
static int trace_fd = -1;
static pid_t owner;

/* ------------------------------------------------------------ the layer itself */

__attribute__((constructor)) static void begin(void)
{
    const char *trace = getenv("FAULTS_TRACE"), *state = getenv("FAULTS_STATE");
    const char *folder = getenv("FAULTS_ROOT");
    if (!trace || !state || !folder)
        return;
    int fd = syscall(SYS_openat, AT_FDCWD, state, O_RDWR | O_CLOEXEC);
    void *memory = fd < 0 ? MAP_FAILED : (void *)syscall(SYS_mmap, 0, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    /* A layer that cannot work must not pass for one that found nothing. */
    if (memory == MAP_FAILED)
        abort();
    syscall(SYS_close, fd);
    shared = memory;
    /* High up, where no program that counts its descriptors looks. */
    fd = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    trace_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, fd);
    if (trace_fd < 0)
        abort();
    role = getenv("REFIT_AGENT_PARENT_PID") ? "worker" : getenv("FAULTS_ROLE");
    if (!role)
        role = "parent";
    keys = getenv("FAULTS_KEYS");
    at = getenv("FAULTS_AT");
    deed = getenv("FAULTS_DO");
    root_length = strlen(folder);
    owner = getpid();
    root = folder;
}

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

static int is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

static size_t run_of(const char *text, const char *also)
{
    size_t length = 0;
    while (is_hex(text[length]) || (text[length] && strchr(also, text[length])))
        length++;
    return length;
}

/* The name of a key, as FAULTS_KEYS has it. */
static void name_of_key(const char *hex, char *name, size_t room)
{
    snprintf(name, room, "?");
    for (const char *p = keys; p && *p;) {
        const char *equals = strchr(p, '='), *comma = strchr(p, ',');
        if (!equals)
            return;
        if (!strncmp(equals + 1, hex, HEX_OF_KEY)) {
            snprintf(name, room, "%.*s", (int)(equals - p), p);
            return;
        }
        p = comma ? comma + 1 : NULL;
    }
}

/* A path below the root with fixed words in place of what is another one each time; 0 for one that is not below it. */
static int shown(const char *path, char *out)
{
    if (!root || strncmp(path, root, root_length) || path[root_length] != '/')
        return 0;
    const char *p = path + root_length + 1;
    size_t used = 0;
    while (*p && used < PATH_BYTES - 100) {
        if (run_of(p, "") == HEX_OF_KEY) {
            name_of_key(p, out + used, 32);
            used += strlen(out + used);
            p += HEX_OF_KEY;
            if (*p == '.' && run_of(p + 1, "-") >= 8) {
                p += 1 + run_of(p + 1, "-");
                used += sprintf(out + used, ".*");
            }
        } else if (!strncmp(p, "machine.json.", 13)) {
            used += sprintf(out + used, "machine.json.*");
            while (*p && *p != '/')
                p++;
        } else {
            /* Whole runs, so that the middle of a name is not taken for a key. */
            do
                out[used++] = *p++;
            while (*p && is_hex(p[-1]) && used < PATH_BYTES - 100);
        }
    }
    out[used] = 0;
    char *deleted = strstr(out, " (deleted)");
    if (deleted)
        *deleted = 0;
    return 1;
}

static int path_of_fd(int fd, char *out)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_BYTES - 1);
    if (length <= 0)
        return 0;
    out[length] = 0;
    return 1;
}

static int shown_fd(int fd, char *out)
{
    char path[PATH_BYTES];
    return root && fd >= 0 && path_of_fd(fd, path) && shown(path, out);
}

static int shown_at(int folder, const char *path, char *out)
{
    char whole[2 * PATH_BYTES];
    if (!root || !path)
        return 0;
    if (path[0] == '/')
        return shown(path, out);
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, whole, PATH_BYTES) <= 0)
            return 0;
    } else if (!path_of_fd(folder, whole))
        return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return shown(whole, out);
}

static int count(const char *call, const char *path)
{
    char name[PATH_BYTES + 32];
    snprintf(name, sizeof name, "%s\t%s", call, path);
    for (int i = 0; i < names_known; i++)
        if (!strcmp(counters[i].name, name))
            return ++counters[i].count;
    if (names_known == MOST_NAMES)
        abort();
    counters[names_known].name = strdup(name);
    counters[names_known++].count = 1;
    return 1;
}

static void tell(const char *first, const char *call, const char *path, int number)
{
    char line[2 * PATH_BYTES];
    int length = snprintf(line, sizeof line, "%s\t%d\t%s\t%s\t%d\t%s\n", first, owner, call, path, number, phase);
    syscall(SYS_write, trace_fd, line, length);
}

static void die(void)
{
    for (;;) {
        syscall(SYS_kill, owner, SIGKILL);
        syscall(SYS_pause);
    }
}

struct verdict {
    int error; /* fail with this */
    int half;  /* do one half of it */
    int torn;  /* and be killed after that */
};

/* One call: told, and spoiled if it is its turn. */
static struct verdict step(const char *call, const char *path, int kind)
{
    struct verdict verdict = {0};
    /* Between fork and exec another process runs on our memory: its calls are not ours. */
    if (!root || getpid() != owner)
        return verdict;
    int before = errno;
    char this[PATH_BYTES + 64];
    pthread_mutex_lock(&lock);
    int number = count(call, path);
    tell(role, call, path, number);
    snprintf(this, sizeof this, "%s\t%s\t%s\t%d", role, call, path, number);
    int free = 0;
    int ours = at && *at && !strcmp(at, this) && __atomic_compare_exchange_n(&shared->fired, &free, 1, 0, 5, 5);
    if (ours)
        tell("FIRED", call, path, number);
    pthread_mutex_unlock(&lock);
    if (ours) {
        if (!strcmp(deed, "kill"))
            die();
        else if (!strcmp(deed, "kill-parent"))
            syscall(SYS_kill, atoi(getenv("REFIT_AGENT_PARENT_PID")), SIGKILL);
        else if (!strcmp(deed, "torn"))
            verdict.half = verdict.torn = 1;
        else if (!strcmp(deed, "short"))
            verdict.half = 1;
        else if (!strncmp(deed, "slow:", 5)) {
            long ms = atol(deed + 5);
            struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
            syscall(SYS_nanosleep, &pause, NULL);
        } else if (!strncmp(deed, "errno:", 6))
            verdict.error = atoi(deed + 6);
        else if (!strcmp(deed, "full"))
            __atomic_store_n(&shared->disk, FULL, 5);
        else if (!strcmp(deed, "readonly"))
            __atomic_store_n(&shared->disk, READ_ONLY, 5);
        else
            abort();
    }
    int disk = strncmp(path, "home/", 5) ? SOUND : __atomic_load_n(&shared->disk, 5);
    if (disk == FULL && kind & TAKES_ROOM)
        verdict.error = ENOSPC;
    if (disk == READ_ONLY && kind & CHANGES)
        verdict.error = EROFS;
    errno = before;
    return verdict;
}

#define FAIL_IF_TOLD(result)           \
    do {                               \
        if (verdict.error) {           \
            errno = verdict.error;     \
            return result;             \
        }                              \
    } while (0)

#define STEP(known, call, kind, result)                   \
    struct verdict verdict = {0};                         \
    char name[PATH_BYTES];                                \
    if (known) {                                          \
        verdict = step(call, name, kind);                 \
        FAIL_IF_TOLD(result);                             \
    }

/* ------------------------------------------------------------ opening */

static int exists(int folder, const char *path)
{
    return syscall(SYS_faccessat, folder, path, F_OK) == 0;
}

static const char *opening(int folder, const char *path, int flags, int *kind)
{
    int before = errno;
    int fresh = flags & O_CREAT && !exists(folder, path);
    errno = before;
    *kind = fresh ? TAKES_ROOM | CHANGES : flags & (O_WRONLY | O_RDWR) ? CHANGES : 0;
    return fresh ? "create" : "open";
}

#define WITH_MODE                                        \
    mode_t mode = 0;                                     \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more;                                    \
        va_start(more, flags);                           \
        mode = va_arg(more, mode_t);                     \
        va_end(more);                                    \
    }

#define OPEN(symbol)                                                     \
    int symbol(const char *path, int flags, ...)                         \
    {                                                                    \
        WITH_MODE                                                        \
        int kind;                                                        \
        const char *call = opening(AT_FDCWD, path, flags, &kind);        \
        STEP(shown_at(AT_FDCWD, path, name), call, kind, -1)             \
        return ((int (*)(const char *, int, ...))next(#symbol))(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol)                                                   \
    int symbol(int folder, const char *path, int flags, ...)             \
    {                                                                    \
        WITH_MODE                                                        \
        int kind;                                                        \
        const char *call = opening(folder, path, flags, &kind);          \
        STEP(shown_at(folder, path, name), call, kind, -1)               \
        return ((int (*)(int, const char *, int, ...))next(#symbol))(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(symbol)                                                    \
    FILE *symbol(const char *path, const char *how)                      \
    {                                                                    \
        int kind, flags = *how == 'r' ? O_RDONLY : O_WRONLY | O_CREAT;   \
        const char *call = opening(AT_FDCWD, path, flags, &kind);        \
        STEP(shown_at(AT_FDCWD, path, name), call, kind, NULL)           \
        return ((FILE * (*)(const char *, const char *)) next(#symbol))(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path)
{
    STEP(shown_at(AT_FDCWD, path, name), "list", 0, NULL)
    return ((DIR * (*)(const char *)) next("opendir"))(path);
}

DIR *fdopendir(int fd)
{
    STEP(shown_fd(fd, name), "list", 0, NULL)
    return ((DIR * (*)(int)) next("fdopendir"))(fd);
}

/* ------------------------------------------------------------ reading and writing */

#define READ(symbol, arguments, passed)                                  \
    ssize_t symbol arguments                                             \
    {                                                                    \
        STEP(shown_fd(fd, name), "read", 0, -1)                          \
        if (verdict.half && size > 1)                                    \
            size /= 2;                                                   \
        return ((ssize_t(*) arguments)next(#symbol)) passed;             \
    }
READ(read, (int fd, void *data, size_t size), (fd, data, size))
READ(pread, (int fd, void *data, size_t size, off_t offset), (fd, data, size, offset))
READ(pread64, (int fd, void *data, size_t size, off64_t offset), (fd, data, size, offset))

/* What a worker reports: the phase that it enters, or its last word. */
static void report(const char *data, size_t size)
{
    static const char head[] = "{\"type\":\"phase\",\"phase\":\"", done[] = "{\"type\":\"done\"";
    if (size > sizeof head && !strncmp(data, head, sizeof head - 1)) {
        size_t length = 0;
        const char *word = data + sizeof head - 1;
        while (length < sizeof phase - 1 && length < size - sizeof head && word[length] != '"')
            length++;
        snprintf(phase, sizeof phase, "%.*s", (int)length, word);
    } else if (size > sizeof done && !strncmp(data, done, sizeof done - 1))
        snprintf(phase, sizeof phase, "done");
    else
        return;
    step("phase", phase, 0);
}

#define WRITE(symbol, arguments, passed)                                 \
    ssize_t symbol arguments                                             \
    {                                                                    \
        char here[PATH_BYTES];                                           \
        int known = shown_fd(fd, here);                                  \
        if (root && !known && getpid() == owner && !strcmp(role, "worker")) \
            report(data, size);                                          \
        struct verdict verdict = {0};                                    \
        if (known) {                                                     \
            verdict = step("write", here, TAKES_ROOM | CHANGES);         \
            FAIL_IF_TOLD(-1);                                            \
        }                                                                \
        if (verdict.half && size > 1)                                    \
            size /= 2;                                                   \
        ssize_t written = ((ssize_t(*) arguments)next(#symbol)) passed;  \
        if (verdict.torn)                                                \
            die();                                                       \
        return written;                                                  \
    }
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t offset), (fd, data, size, offset))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t offset), (fd, data, size, offset))

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    STEP(shown_fd(fd, name), "write", TAKES_ROOM | CHANGES, -1)
    if (verdict.half && count > 1)
        count /= 2;
    ssize_t written = ((ssize_t(*)(int, const struct iovec *, int))next("writev"))(fd, parts, count);
    if (verdict.torn)
        die();
    return written;
}

#define MMAP(symbol, offset_type)                                        \
    void *symbol(void *where, size_t size, int protection, int flags, int fd, offset_type offset) \
    {                                                                    \
        STEP(!(flags & MAP_ANONYMOUS) && shown_fd(fd, name), "mmap", 0, MAP_FAILED) \
        return ((void *(*)(void *, size_t, int, int, int, offset_type))next(#symbol))( \
            where, size, protection, flags, fd, offset);                 \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

#define COPY(symbol, offset_type)                                        \
    ssize_t symbol(int target, int source, offset_type *offset, size_t size) \
    {                                                                    \
        STEP(shown_fd(target, name), "write", TAKES_ROOM | CHANGES, -1)  \
        if (verdict.half && size > 1)                                    \
            size /= 2;                                                   \
        ssize_t copied = ((ssize_t(*)(int, int, offset_type *, size_t))next(#symbol))(target, source, offset, size); \
        if (verdict.torn)                                                \
            die();                                                       \
        return copied;                                                   \
    }
COPY(sendfile, off_t)
COPY(sendfile64, off64_t)

ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t size, unsigned flags)
{
    STEP(shown_fd(target, name), "write", TAKES_ROOM | CHANGES, -1)
    return ((ssize_t(*)(int, off64_t *, int, off64_t *, size_t, unsigned))next("copy_file_range"))(
        source, from, target, to, size, flags);
}

/* ------------------------------------------------------------ everything that takes a descriptor */

#define ON_FD(symbol, call, kind, arguments, passed)                     \
    int symbol arguments                                                 \
    {                                                                    \
        STEP(shown_fd(fd, name), call, kind, -1)                         \
        return ((int (*) arguments)next(#symbol)) passed;                \
    }
ON_FD(fsync, "fsync", 0, (int fd), (fd))
ON_FD(fdatasync, "fsync", 0, (int fd), (fd))
ON_FD(ftruncate, "truncate", CHANGES, (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, "truncate", CHANGES, (int fd, off64_t size), (fd, size))
ON_FD(fallocate, "allocate", TAKES_ROOM | CHANGES, (int fd, int mode, off_t from, off_t size), (fd, mode, from, size))
ON_FD(flock, "lock", 0, (int fd, int operation), (fd, operation))
ON_FD(fchmod, "chmod", CHANGES, (int fd, mode_t mode), (fd, mode))
ON_FD(futimens, "utime", CHANGES, (int fd, const struct timespec times[2]), (fd, times))
ON_FD(fstat, "stat", 0, (int fd, struct stat *status), (fd, status))
ON_FD(fstat64, "stat", 0, (int fd, struct stat64 *status), (fd, status))

#define ALLOCATE(symbol, offset_type)                                    \
    int symbol(int fd, offset_type from, offset_type size)               \
    {                                                                    \
        struct verdict verdict = {0};                                    \
        char name[PATH_BYTES];                                           \
        if (shown_fd(fd, name))                                          \
            verdict = step("allocate", name, TAKES_ROOM | CHANGES);      \
        if (verdict.error)                                               \
            return verdict.error;                                        \
        return ((int (*)(int, offset_type, offset_type))next(#symbol))(fd, from, size); \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

/* ------------------------------------------------------------ everything that takes a path */

#define ON_PATH(symbol, call, kind, arguments, passed)                   \
    int symbol arguments                                                 \
    {                                                                    \
        STEP(shown_at(AT_FDCWD, path, name), call, kind, -1)             \
        return ((int (*) arguments)next(#symbol)) passed;                \
    }
ON_PATH(unlink, "unlink", CHANGES, (const char *path), (path))
ON_PATH(rmdir, "rmdir", CHANGES, (const char *path), (path))
ON_PATH(mkdir, "mkdir", TAKES_ROOM | CHANGES, (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, "chmod", CHANGES, (const char *path, mode_t mode), (path, mode))
ON_PATH(stat, "stat", 0, (const char *path, struct stat *status), (path, status))
ON_PATH(stat64, "stat", 0, (const char *path, struct stat64 *status), (path, status))
ON_PATH(lstat, "stat", 0, (const char *path, struct stat *status), (path, status))
ON_PATH(lstat64, "stat", 0, (const char *path, struct stat64 *status), (path, status))
ON_PATH(access, "stat", 0, (const char *path, int how), (path, how))
ON_PATH(statvfs, "statvfs", 0, (const char *path, struct statvfs *status), (path, status))
ON_PATH(statvfs64, "statvfs", 0, (const char *path, struct statvfs64 *status), (path, status))

#define ON_PATH_AT(symbol, call, kind, arguments, passed)                \
    int symbol arguments                                                 \
    {                                                                    \
        STEP(shown_at(folder, path, name), call, kind, -1)               \
        return ((int (*) arguments)next(#symbol)) passed;                \
    }
ON_PATH_AT(mkdirat, "mkdir", TAKES_ROOM | CHANGES, (int folder, const char *path, mode_t mode), (folder, path, mode))
ON_PATH_AT(unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", CHANGES, (int folder, const char *path, int flags),
           (folder, path, flags))
ON_PATH_AT(fchmodat, "chmod", CHANGES, (int folder, const char *path, mode_t mode, int flags),
           (folder, path, mode, flags))
ON_PATH_AT(utimensat, "utime", CHANGES, (int folder, const char *path, const struct timespec times[2], int flags),
           (folder, path, times, flags))
ON_PATH_AT(fstatat, "stat", 0, (int folder, const char *path, struct stat *status, int flags),
           (folder, path, status, flags))
ON_PATH_AT(fstatat64, "stat", 0, (int folder, const char *path, struct stat64 *status, int flags),
           (folder, path, status, flags))

ssize_t readlink(const char *path, char *target, size_t size)
{
    STEP(shown_at(AT_FDCWD, path, name), "stat", 0, -1)
    return ((ssize_t(*)(const char *, char *, size_t))next("readlink"))(path, target, size);
}

/* ------------------------------------------------------------ two names */

static int two(int folder, const char *old, int other, const char *new, char *out)
{
    char first[PATH_BYTES], second[PATH_BYTES];
    if (!shown_at(folder, old, first) || !shown_at(other, new, second))
        return 0;
    snprintf(out, PATH_BYTES, "%.500s > %.500s", first, second);
    return 1;
}

#define TWO(symbol, call, kind, first, second, arguments, passed)        \
    int symbol arguments                                                 \
    {                                                                    \
        STEP(two(first, old, second, new, name), call, kind, -1)         \
        return ((int (*) arguments)next(#symbol)) passed;                \
    }
TWO(rename, "rename", CHANGES, AT_FDCWD, AT_FDCWD, (const char *old, const char *new), (old, new))
TWO(renameat, "rename", CHANGES, folder, other, (int folder, const char *old, int other, const char *new),
    (folder, old, other, new))
TWO(renameat2, "rename", CHANGES, folder, other,
    (int folder, const char *old, int other, const char *new, unsigned flags), (folder, old, other, new, flags))
TWO(link, "link", TAKES_ROOM | CHANGES, AT_FDCWD, AT_FDCWD, (const char *old, const char *new), (old, new))
TWO(linkat, "link", TAKES_ROOM | CHANGES, folder, other,
    (int folder, const char *old, int other, const char *new, int flags), (folder, old, other, new, flags))
TWO(symlink, "link", TAKES_ROOM | CHANGES, AT_FDCWD, AT_FDCWD, (const char *old, const char *new), (old, new))
