/* Makes the n-th call of a function fail, when our extension or libuv calls it.
 *
 * Preloaded (LD_PRELOAD), it stands before libc's functions. A call counts when
 * its return address lies in a library whose name contains "_libuv." or
 * "libuv.so": calls of the interpreter and of libc itself are left alone.
 * tests/faults/run.py sets the fault by ctypes, through fault_set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define RANGES_MAX 16
#define COUNTS_MAX 128

static struct { unsigned long start, end; } ranges[RANGES_MAX];
static int range_count;
static struct { const char *name; int calls; } counts[COUNTS_MAX];

static char fault_name[64];
static int fault_first;     /* the number of the call that fails; 0: none */
static int fault_error;     /* errno, or the result of functions that return it */
static int fault_persists;  /* the calls after it fail too */
static int fault_calls;
static int fault_fires;

static int add_ranges(struct dl_phdr_info *info, size_t size, void *arg) {
  int i;

  (void) size;
  (void) arg;
  if (strstr(info->dlpi_name, "_libuv.") == NULL &&
      strstr(info->dlpi_name, "libuv.so") == NULL)
    return 0;
  for (i = 0; i < info->dlpi_phnum && range_count < RANGES_MAX; i++) {
    const ElfW(Phdr) *part = &info->dlpi_phdr[i];

    if (part->p_type == PT_LOAD && (part->p_flags & PF_X)) {
      ranges[range_count].start = info->dlpi_addr + part->p_vaddr;
      ranges[range_count++].end =
          info->dlpi_addr + part->p_vaddr + part->p_memsz;
    }
  }
  return 0;
}

/* Returns the number of code segments found: 0 if the extension is not loaded.
 * first == 0 only counts the calls of all functions. */
int fault_set(const char *name, int first, int error, int persists) {
  fault_first = 0;
  range_count = 0;
  dl_iterate_phdr(add_ranges, NULL);
  memset(counts, 0, sizeof(counts));
  strncpy(fault_name, name, sizeof(fault_name) - 1);
  fault_error = error;
  fault_persists = persists;
  fault_calls = fault_fires = 0;
  __atomic_store_n(&fault_first, first, __ATOMIC_SEQ_CST);
  return range_count;
}

/* Ends the fault. Returns how often it has fired. */
int fault_clear(void) {
  __atomic_store_n(&fault_first, 0, __ATOMIC_SEQ_CST);
  range_count = 0;
  return fault_fires;
}

/* How often our code has called the function since fault_set. */
int fault_count(const char *name) {
  int i;

  for (i = 0; i < COUNTS_MAX && counts[i].name != NULL; i++)
    if (strcmp(counts[i].name, name) == 0)
      return counts[i].calls;
  return 0;
}

static void count(const char *name) {
  int i;

  for (i = 0; i < COUNTS_MAX; i++) {
    if (counts[i].name == NULL)
      counts[i].name = name;
    if (counts[i].name == name) {
      __atomic_add_fetch(&counts[i].calls, 1, __ATOMIC_RELAXED);
      return;
    }
  }
}

static int fails(const char *name, const void *caller) {
  unsigned long address = (unsigned long) caller;
  int number;
  int i;

  for (i = 0; i < range_count; i++)
    if (address >= ranges[i].start && address < ranges[i].end)
      break;
  if (i == range_count)
    return 0;
  count(name);
  if (fault_first == 0 || strcmp(name, fault_name) != 0)
    return 0;
  number = __atomic_add_fetch(&fault_calls, 1, __ATOMIC_SEQ_CST);
  if (number < fault_first || (number > fault_first && !fault_persists))
    return 0;
  __atomic_add_fetch(&fault_fires, 1, __ATOMIC_RELAXED);
  return 1;
}

/* One wrapper serves functions of up to seven integers or pointers, variadic
 * ones as well: on the 64-bit systems that this is for, such arguments are
 * passed alike, and to pass on too many does no harm. */
typedef long function(long, long, long, long, long, long, long);

#define ARGUMENTS long a, long b, long c, long d, long e, long f, long g
#define CALLER __builtin_return_address(0)

#define WRAP(name, find, condition, failure)                        \
  WRAP_AS(name, #name, find, condition, failure)

/* Under another name in the table of faults. */
#define WRAP_AS(name, as, find, condition, failure)                 \
  long wrap_##name(ARGUMENTS) __asm__(#name);                       \
  long wrap_##name(ARGUMENTS) {                                     \
    static function *real;                                          \
                                                                    \
    if (real == NULL)                                               \
      real = (function *) (find);                                   \
    if ((condition) && fails(as, CALLER)) {                      \
      failure;                                                      \
    }                                                               \
    return real(a, b, c, d, e, f, g);                               \
  }

#define NEXT(name) WRAP(name, dlsym(RTLD_NEXT, #name), 1,           \
                        errno = fault_error; return -1)
#define NULL_NEXT(name) WRAP(name, dlsym(RTLD_NEXT, #name), 1,      \
                             errno = fault_error; return 0)
/* These return their error, and leave errno alone. */
#define CODE_NEXT(name) WRAP(name, dlsym(RTLD_NEXT, #name), 1,      \
                             return fault_error)

/* dlsym allocates memory: libc's own names need no search. */
#define MEMORY(name)                                                \
  extern long __libc_##name(ARGUMENTS);                             \
  WRAP(name, __libc_##name, 1, errno = fault_error; return 0)

MEMORY(malloc)
MEMORY(calloc)
MEMORY(realloc)

NEXT(readv) NEXT(pread) NEXT(pread64)
NEXT(pwrite64) NEXT(sendmsg) NEXT(sendto) NEXT(sendmmsg) NEXT(recvmsg)
NEXT(recvmmsg) NEXT(accept4) NEXT(socket) NEXT(connect) NEXT(bind) NEXT(listen)
NEXT(shutdown) NEXT(setsockopt) NEXT(getsockopt) NEXT(getsockname)
NEXT(getpeername) NEXT(ioctl) NEXT(dup) NEXT(dup3)
NEXT(pipe2) NEXT(eventfd) NEXT(epoll_create1) NEXT(epoll_pwait)
NEXT(epoll_wait) NEXT(poll) NEXT(inotify_init1) NEXT(inotify_add_watch)
NEXT(fork) NEXT(waitpid) NEXT(kill) NEXT(open) NEXT(open64) NEXT(stat)
NEXT(stat64) NEXT(lstat64) NEXT(fstat64) NEXT(scandir64) NEXT(mkdir)
NEXT(rmdir) NEXT(rename) NEXT(unlink) NEXT(fsync) NEXT(sendfile)
NEXT(sendfile64) NEXT(copy_file_range)
NEXT(readlink) NEXT(getifaddrs) NEXT(access) NEXT(chmod) NEXT(link)
NEXT(symlink) NEXT(utimensat)
NULL_NEXT(mkdtemp) NULL_NEXT(opendir) NULL_NEXT(realpath)
CODE_NEXT(pthread_create) CODE_NEXT(getaddrinfo) CODE_NEXT(getnameinfo)

/* Only an addition needs memory, and one of a descriptor that the set has
 * already fails with EEXIST before that: so the kernel is asked first. */
long wrap_epoll_ctl(ARGUMENTS) __asm__("epoll_ctl");
long wrap_epoll_ctl(ARGUMENTS) {
  function *real = (function *) dlsym(RTLD_NEXT, "epoll_ctl");
  long result = real(a, b, c, d, e, f, g);

  if (b == EPOLL_CTL_ADD && (int) result == 0 && fails("epoll_ctl", CALLER)) {
    real(a, EPOLL_CTL_DEL, c, d, e, f, g);
    errno = fault_error;
    return -1;
  }
  return result;
}

/* Of the commands that we use only those that duplicate. */
#define FCNTL(name)                                                 \
  WRAP(name, dlsym(RTLD_NEXT, #name), b == F_DUPFD || b == F_DUPFD_CLOEXEC, \
       errno = fault_error; return -1)

FCNTL(fcntl)
FCNTL(fcntl64)

/* What may fail depends on the file. The small reads and writes are libuv's, of
 * its eventfds and its pipe for signals, and of our pair of sockets for them. */
static const char *by_file(long fd, long size, const char *socket,
                           const char *file, const char *internal) {
  struct stat found;

  if (fstat((int) fd, &found) != 0 || size <= 1024)
    return internal;
  if (S_ISREG(found.st_mode))
    return file;
  return S_ISSOCK(found.st_mode) || (S_ISFIFO(found.st_mode) && socket[0] == 'w')
             ? socket
             : internal;
}

#define BY_FILE(name, size)                                             \
  WRAP_AS(name, by_file(a, size, #name, #name "_file", #name "_internal"), \
          dlsym(RTLD_NEXT, #name), 1, errno = fault_error; return -1)

BY_FILE(read, c)
BY_FILE(write, c)
BY_FILE(writev, 1 << 20)

/* Linux closes the descriptor all the same (close(2)). */
WRAP(close, dlsym(RTLD_NEXT, "close"), 1,
     real(a, b, c, d, e, f, g); errno = fault_error; return -1)

/* libuv closes by syscall, too, which makes it no cancellation point. And since
 * 1.45 it changes epoll by a ring that it has made before: no kernel gives one
 * and refuses to take what is in it. */
WRAP(syscall, dlsym(RTLD_NEXT, "syscall"),
     a != SYS_close && a != SYS_io_uring_enter,
     errno = fault_error; return -1)
