/* File operations of a process, counted, recorded and made to fail: a library to be preloaded.
 *
 * Idle until faults_arm() names a directory. From then on every operation of this process (its forks are left
 * alone) that changes something below that directory is recorded with all it takes to do it again, in the order
 * in which they happen, and the n-th one that matches is where the process is killed, signalled or refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The same numbers stand in shim.py. */
enum operation { OPEN, WRITE, SYNC, RENAME, LINK, UNLINK, TRUNCATE, CLOSE, MKDIR, RMDIR, LOOK };
enum action { NOTHING, KILL_BEFORE, KILL_WITHIN, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SIGNAL_BEFORE };

struct record {
    int32_t operation, descriptor;
    int64_t number; /* flags of OPEN, offset of WRITE, length of TRUNCATE */
    uint32_t first, second, data; /* bytes that follow: a path, another, what was written */
};

#define DESCRIPTORS 65536

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t owner;
static char top[PATH_MAX / 2], here[PATH_MAX / 2], wanted[PATH_MAX];
static int record_to = -1, action, argument;
static unsigned operations;
static long awaited, seen;
static char watched[DESCRIPTORS]; /* 1: to be read, 2: to be written */

int faults_arm(const char *directory, const char *records, unsigned counted, const char *suffix, long n, int what,
               int how)
{
    int descriptor = syscall(SYS_openat, AT_FDCWD, records, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (descriptor < 0 || !getcwd(here, sizeof here)) return -1;
    record_to = fcntl(descriptor, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, descriptor);
    snprintf(top, sizeof top, "%s", directory);
    snprintf(wanted, sizeof wanted, "%s", suffix);
    operations = counted, awaited = n, seen = 0, action = what, argument = how;
    memset(watched, 0, sizeof watched);
    owner = getpid();
    return 0;
}

static int is_ours(void) { return owner && getpid() == owner; }

static int is_watched(int descriptor)
{
    return is_ours() && descriptor >= 0 && descriptor < DESCRIPTORS && watched[descriptor];
}

static const char *name_of_descriptor(int descriptor, char *buffer)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

/* The absolute name of a path that is ours to watch, or NULL. */
static const char *name_of(int directory, const char *path, char *buffer)
{
    if (!is_ours() || !path) return NULL;
    char base[PATH_MAX] = "";
    if (path[0] != '/' && directory == AT_FDCWD) strcpy(base, here);
    else if (path[0] != '/') name_of_descriptor(directory, base);
    int length = snprintf(buffer, PATH_MAX, "%s%s%s", base, *base ? "/" : "", strcmp(path, ".") ? path : "");
    if (length >= PATH_MAX) return NULL;
    while (length > 1 && buffer[length - 1] == '/') buffer[--length] = 0;
    size_t head = strlen(top);
    return strncmp(buffer, top, head) == 0 && (!buffer[head] || buffer[head] == '/') ? buffer : NULL;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void put_down(int operation, int descriptor, int64_t number, const char *first, const char *second,
                     const void *data, size_t size)
{
    struct record record = {operation, descriptor, number, first ? strlen(first) : 0,
                            second ? strlen(second) : 0, size};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)first, record.first},
                            {(void *)second, record.second}, {(void *)data, size}};
    size_t whole = sizeof record + record.first + record.second + size;
    int before = errno;
    if (syscall(SYS_writev, record_to, parts, 4) != (long)whole) abort(); /* a false record proves nothing */
    errno = before;
}

static int ends_with(const char *text, const char *end)
{
    size_t all = strlen(text), some = strlen(end);
    return some <= all && strcmp(text + all - some, end) == 0;
}

/* Begin an operation; the answer says what is to happen with it: NOTHING, KILL_WITHIN, KILL_AFTER or FAIL_ONCE. */
static int begin(int operation, const char *path)
{
    pthread_mutex_lock(&lock); /* also makes the order of records the order of events */
    if (!(operations >> operation & 1) || !ends_with(path, wanted)) return NOTHING;
    seen++;
    if (action == FAIL_FROM && seen >= awaited) return FAIL_ONCE;
    if (seen != awaited) return NOTHING;
    if (action == KILL_BEFORE) die();
    if (action == SIGNAL_BEFORE) kill(getpid(), argument);
    return action == SIGNAL_BEFORE ? NOTHING : action;
}

static long end(int fate, long result)
{
    if (fate == KILL_AFTER || fate == KILL_WITHIN) die();
    pthread_mutex_unlock(&lock);
    return result;
}

static long refused(void)
{
    pthread_mutex_unlock(&lock);
    errno = argument;
    return -1;
}

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = name_of(directory, path, buffer);
    if (!name) return syscall(SYS_openat, directory, path, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    int operation = writes ? OPEN : LOOK;
    int fate = begin(operation, name);
    if (fate == FAIL_ONCE) return refused();
    int descriptor = syscall(SYS_openat, directory, path, flags, mode);
    if (descriptor >= 0) {
        if (descriptor < DESCRIPTORS) watched[descriptor] = writes ? 2 : 1;
        put_down(operation, descriptor, flags, name, NULL, NULL, 0);
    }
    return end(fate, descriptor);
}

#define MODE(flags)                              \
    mode_t mode = 0;                             \
    if (flags & (O_CREAT | __O_TMPFILE)) {       \
        va_list rest;                            \
        va_start(rest, flags);                   \
        mode = va_arg(rest, unsigned);           \
        va_end(rest);                            \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return open_at(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return open_at(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t write_at(int descriptor, const void *data, size_t size, off_t offset, int positioned)
{
    if (!is_watched(descriptor))
        return positioned ? syscall(SYS_pwrite64, descriptor, data, size, offset)
                          : syscall(SYS_write, descriptor, data, size);
    char buffer[PATH_MAX];
    int fate = begin(WRITE, name_of_descriptor(descriptor, buffer));
    if (fate == FAIL_ONCE) return refused();
    if (fate == KILL_WITHIN) size /= 2;
    if (!positioned) {
        struct stat found;
        int appends = syscall(SYS_fcntl, descriptor, F_GETFL) & O_APPEND;
        offset = appends && fstat(descriptor, &found) == 0 ? found.st_size : lseek(descriptor, 0, SEEK_CUR);
    }
    ssize_t written = positioned ? syscall(SYS_pwrite64, descriptor, data, size, offset)
                                 : syscall(SYS_write, descriptor, data, size);
    if (written >= 0) put_down(WRITE, descriptor, offset, NULL, NULL, data, written);
    return end(fate, written);
}

ssize_t write(int descriptor, const void *data, size_t size) { return write_at(descriptor, data, size, 0, 0); }
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    return write_at(descriptor, data, size, offset, 1);
}
ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t offset)
{
    return write_at(descriptor, data, size, offset, 1);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    if (!is_watched(descriptor)) return syscall(SYS_writev, descriptor, parts, count);
    ssize_t written = 0;
    for (int i = 0; i < count; i++) {
        ssize_t some = write_at(descriptor, parts[i].iov_base, parts[i].iov_len, 0, 0);
        if (some < 0) return written ? written : -1;
        written += some;
        if ((size_t)some < parts[i].iov_len) break;
    }
    return written;
}

static int sync_by(long call, int descriptor)
{
    if (!is_watched(descriptor)) return syscall(call, descriptor);
    char buffer[PATH_MAX];
    int fate = begin(SYNC, name_of_descriptor(descriptor, buffer));
    if (fate == FAIL_ONCE) return refused();
    int result = syscall(call, descriptor);
    if (result == 0) put_down(SYNC, descriptor, 0, NULL, NULL, NULL, 0);
    return end(fate, result);
}

int fsync(int descriptor) { return sync_by(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return sync_by(SYS_fdatasync, descriptor); }

int close(int descriptor)
{
    if (!is_watched(descriptor)) return syscall(SYS_close, descriptor);
    char buffer[PATH_MAX];
    int fate = NOTHING;
    if (watched[descriptor] == 2) fate = begin(CLOSE, name_of_descriptor(descriptor, buffer));
    else pthread_mutex_lock(&lock);
    watched[descriptor] = 0;
    int result = syscall(SYS_close, descriptor);
    put_down(CLOSE, descriptor, 0, NULL, NULL, NULL, 0);
    if (fate == FAIL_ONCE) return refused();
    return end(fate, result);
}

/* An operation on one or two names, done by CALL and counted by the last name. */
#define ON_NAMES(operation, number, first, second, CALL)                                       \
    do {                                                                                       \
        int fate = begin(operation, (second) ? (second) : (first));                            \
        if (fate == FAIL_ONCE) return refused();                                               \
        int result = CALL;                                                                     \
        if (result == 0) put_down(operation, -1, number, first, second, NULL, 0);              \
        return end(fate, result);                                                              \
    } while (0)

static int rename_at(int from, const char *old, int to, const char *new, unsigned flags)
{
    char first[PATH_MAX], second[PATH_MAX];
    const char *a = name_of(from, old, first), *b = name_of(to, new, second);
    if (!a || !b) return syscall(SYS_renameat2, from, old, to, new, flags);
    ON_NAMES(RENAME, flags, a, b, syscall(SYS_renameat2, from, old, to, new, flags));
}

int rename(const char *old, const char *new) { return rename_at(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return rename_at(from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    return rename_at(from, old, to, new, flags);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    char first[PATH_MAX], second[PATH_MAX];
    const char *a = name_of(from, old, first), *b = name_of(to, new, second);
    if (!a || !b) return syscall(SYS_linkat, from, old, to, new, flags);
    ON_NAMES(LINK, flags, a, b, syscall(SYS_linkat, from, old, to, new, flags));
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int directory, const char *path, int flags)
{
    char buffer[PATH_MAX];
    const char *name = name_of(directory, path, buffer);
    if (!name) return syscall(SYS_unlinkat, directory, path, flags);
    ON_NAMES(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, name, (const char *)NULL,
             syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int directory, const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = name_of(directory, path, buffer);
    if (!name) return syscall(SYS_mkdirat, directory, path, mode);
    ON_NAMES(MKDIR, mode, name, (const char *)NULL, syscall(SYS_mkdirat, directory, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int truncate(const char *path, off_t length)
{
    char buffer[PATH_MAX];
    const char *name = name_of(AT_FDCWD, path, buffer);
    if (!name) return syscall(SYS_truncate, path, length);
    ON_NAMES(TRUNCATE, length, name, (const char *)NULL, syscall(SYS_truncate, path, length));
}

int truncate64(const char *path, off_t length) { return truncate(path, length); }

int ftruncate(int descriptor, off_t length)
{
    if (!is_watched(descriptor)) return syscall(SYS_ftruncate, descriptor, length);
    char buffer[PATH_MAX];
    int fate = begin(TRUNCATE, name_of_descriptor(descriptor, buffer));
    if (fate == FAIL_ONCE) return refused();
    int result = syscall(SYS_ftruncate, descriptor, length);
    if (result == 0) put_down(TRUNCATE, descriptor, length, NULL, NULL, NULL, 0);
    return end(fate, result);
}

int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }
