/* Preloaded into a daemon under test, whose clocks are as the file VISAGED_TEST_CLOCK says: seconds by which the wall
   clock is off, seconds by which the time since boot is off, name of the boot, 1 where the wall clock is
   synchronised. What is not said there is the kernel's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

struct said {
    long long wall_s, boot_s;
    char boot[64];
    int is_synchronised;
};

static struct said read_said(void) {
    struct said said = {0};
    char text[128] = {0};
    const char *path = getenv("VISAGED_TEST_CLOCK");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return said;
    if (read(file, text, sizeof text - 1) > 0)
        sscanf(text, "%lld %lld %63s %d", &said.wall_s, &said.boot_s, said.boot, &said.is_synchronised);
    close(file);
    return said;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_BOOTTIME)) return failed;
    struct said said = read_said();
    time->tv_sec += clock == CLOCK_REALTIME ? said.wall_s : said.boot_s;
    return 0;
}

int adjtimex(struct timex *timex) {
    int state = syscall(SYS_adjtimex, timex);
    if (read_said().is_synchronised) timex->maxerror = 1000;
    return state;
}

int open64(const char *path, int flags, ...) {
    struct said said = {0};
    if (!strcmp(path, "/proc/sys/kernel/random/boot_id")) said = read_said();
    if (said.boot[0]) {
        int file = memfd_create("boot_id", MFD_CLOEXEC);
        if (file < 0 || write(file, said.boot, strlen(said.boot)) < 0) return -1;
        lseek(file, 0, SEEK_SET);
        return file;
    }
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
