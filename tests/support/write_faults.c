/* Preloaded into a process: its Nth write below a folder fails, or writes one half and then fails or kills the process.
   FAULT_FOLDER, FAULT_AT (from 0), FAULT_KIND: eio, enospc, half (then EIO), torn (then SIGKILL). Makes one fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long writes;

static int is_below(int descriptor)
{
    const char *folder = getenv("FAULT_FOLDER");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    return folder && size > 0 && !strncmp(path, folder, strlen(folder));
}

static ssize_t write_next(int descriptor, const void *data, size_t size)
{
    return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(descriptor, data, size);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    if (!at || !kind || !is_below(descriptor) || atomic_fetch_add(&writes, 1) != atol(at))
        return write_next(descriptor, data, size);
    if (!strcmp(kind, "half") || !strcmp(kind, "torn"))
        write_next(descriptor, data, size / 2);
    if (!strcmp(kind, "torn"))
        kill(getpid(), SIGKILL);
    errno = strcmp(kind, "enospc") ? EIO : ENOSPC;
    return -1;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(descriptor, parts[i].iov_base, parts[i].iov_len);
        if (done < 0)
            return -1;
        total += done;
    }
    return total;
}
