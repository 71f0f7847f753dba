/* Operations on files: requests in libuv's thread pool. */
#define _GNU_SOURCE  /* syscall */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef PA_LINUX
#include <sys/sendfile.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

/* Linux's read(2) gives no more at once, nor does its sendfile(2). */
#define LARGEST_READ 0x7ffff000
/* The size of sendfile's buffer where the kernel cannot copy by itself. */
#define COPY_SIZE ((size_t) 128 << 10)

typedef struct {
  pa_request base;
  uv_fs_t uv;
  pa_fs_outcome outcome;
  int taken;       /* see pa_fs_take */
  int fd;          /* to be closed, or written to */
  int64_t offset;
  size_t size;     /* to be written */
  size_t done;     /* so much of that is written */
  char *buffer;    /* a copy of Python's data, or memory for a result */
  uv_work_t work;  /* of a sendfile, as are those below, and of a whole file */
  int in_fd;
  int way;         /* index in ways */
  int64_t sent;    /* the size that the last step has sent, or an error */
  int owns;        /* fd and in_fd are duplicates, and closed with the request */
  char *path;      /* of a whole file, as are those below */
  int flags;
  int mode;
} pa_fs;

/* Python may never have taken the result, because the request was cancelled too
 * late, or because the loop has ended: nothing may leak then. */

static void release(pa_request *request) {
  pa_fs *fs = (pa_fs *) request;
  int64_t result = fs->outcome.result;

  switch (fs->uv.fs_type) {
    case UV_FS_CLOSE:
      if (result == UV_ECANCELED)
        close(fs->fd);
      break;
    case UV_FS_OPEN:
      if (result >= 0 && !fs->taken)
        close((int) result);
      break;
    case UV_FS_MKDTEMP:
      if (result >= 0 && !fs->taken)
        rmdir(fs->uv.path);
      break;
    default:
      break;
  }
  if (fs->owns) {
    close(fs->in_fd);
    if (fs->fd != fs->in_fd)
      close(fs->fd);
  }
  uv_fs_req_cleanup(&fs->uv);
  free(fs->path);
  free(fs->buffer);
  free(fs);
}

static int fs_new(pa_loop *loop, pa_fs **fs) {
  pa_request *request;
  int error = pa_request_new(loop, sizeof(**fs), release, &request);

  if (error == 0) {
    *fs = (pa_fs *) request;
    (*fs)->outcome.result = UV_ECANCELED;  /* until there is another result */
  }
  return error;
}

static int64_t begin(pa_fs *fs, int error) {
  return pa_request_begin(&fs->base, (uv_req_t *) &fs->uv, error);
}

/* Joins the entries, so that Python gets all of them with one call. */
static int pack_entries(pa_fs *fs) {
  size_t capacity = 0;
  size_t used = 0;
  uv_dirent_t entry;

  while (uv_fs_scandir_next(&fs->uv, &entry) == 0) {
    size_t size = strlen(entry.name) + 1;

    if (used + 1 + size > capacity) {
      char *buffer;

      capacity = 2 * (capacity + size) + 1024;
      buffer = realloc(fs->buffer, capacity);
      if (buffer == NULL)
        return UV_ENOMEM;
      fs->buffer = buffer;
    }
    fs->buffer[used++] = (char) ('0' + entry.type);
    memcpy(fs->buffer + used, entry.name, size);
    used += size;
  }
  fs->outcome.data = fs->buffer;
  fs->outcome.size = used;
  return (int) fs->uv.result;
}

static void set_text(pa_fs_outcome *outcome, const char *text) {
  outcome->data = text;
  outcome->size = strlen(text);
}

static void on_done(uv_fs_t *uv);

static int begin_read(pa_fs *fs) {
  uv_buf_t buffer;

  buffer.base = fs->buffer;
  buffer.len = fs->size;
  return uv_fs_read(&fs->base.loop->uv, &fs->uv, fs->fd, &buffer, 1, fs->offset,
                    on_done);
}

/* A signal has interrupted a read in its thread, before there was any data:
 * libuv reports that of reads only. Returns whether it is begun again. */
static int read_again(pa_fs *fs) {
  if (fs->uv.fs_type != UV_FS_READ || fs->uv.result != UV_EINTR ||
      fs->base.loop->closing)
    return 0;
  uv_fs_req_cleanup(&fs->uv);
  return begin_read(fs) == 0;
}

static void on_done(uv_fs_t *uv) {
  pa_fs *fs = CONTAINER_OF(uv, pa_fs, uv);
  pa_fs_outcome *outcome = &fs->outcome;

  if (read_again(fs))
    return;
  outcome->result = uv->result;
  if (uv->result >= 0) {
    switch (uv->fs_type) {
      case UV_FS_READ:
        outcome->data = fs->buffer;
        outcome->size = (size_t) uv->result;
        break;
      case UV_FS_SCANDIR:
        outcome->result = pack_entries(fs);
        break;
      case UV_FS_READLINK:
      case UV_FS_REALPATH:
        set_text(outcome, uv->ptr);
        break;
      case UV_FS_MKDTEMP:
        set_text(outcome, uv->path);
        break;
      default:
        break;
    }
  }
  pa_request_done(&fs->base);
}

int64_t pa_fs_stat(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_stat(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_lstat(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_lstat(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_fstat(pa_loop *loop, int fd) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_fstat(&loop->uv, &fs->uv, fd, on_done));
}

int64_t pa_fs_open(pa_loop *loop, const char *path, int flags, int mode) {
  pa_fs *fs;
  int error = pa_open_standard_streams();

  if (error == 0)
    error = fs_new(loop, &fs);
  if (error != 0)
    return error;
  return begin(fs, uv_fs_open(&loop->uv, &fs->uv, path, flags, mode, on_done));
}

int64_t pa_fs_read(pa_loop *loop, int fd, size_t size, int64_t offset) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  fs->fd = fd;
  fs->size = size < LARGEST_READ ? size : LARGEST_READ;
  fs->offset = offset;
  fs->buffer = malloc(fs->size + 1);
  if (fs->buffer == NULL)
    return begin(fs, UV_ENOMEM);
  return begin(fs, begin_read(fs));
}

/* sendfile, one system call a step. Not uv_fs_sendfile, because that waits in
 * poll(2) for a peer that does not read, although the descriptor does not
 * block: it would hold a thread of the pool without end. */

#ifdef PA_LINUX
/* This is tried first, because file systems can share blocks in place of
 * copying them. By its number, because glibc knows the name since 2.27 only. */
static ssize_t copy_range(pa_fs *fs, off_t offset, size_t size) {
  int64_t from = offset;

  return syscall(SYS_copy_file_range, fs->in_fd, &from, fs->fd, NULL, size, 0);
}

static ssize_t kernel_sendfile(pa_fs *fs, off_t offset, size_t size) {
  return sendfile(fs->fd, fs->in_fd, &offset, size);
}
#endif

static ssize_t write_all(int fd, const char *data, size_t size) {
  size_t done = 0;
  ssize_t result;

  do {
    result = write(fd, data + done, size - done);
    if (result > 0)
      done += (size_t) result;
  } while (done < size && (result > 0 || (result < 0 && errno == EINTR)));
  return done > 0 ? (ssize_t) done : result;
}

static ssize_t read_and_write(pa_fs *fs, off_t offset, size_t size) {
  char *data;
  ssize_t result;

  if (size > COPY_SIZE)
    size = COPY_SIZE;
  data = malloc(size + 1);
  if (data == NULL) {
    errno = ENOMEM;
    return -1;
  }
  result = pread(fs->in_fd, data, size, offset);
  /* A pipe has no offset, and no way back for bytes that were read from it:
   * they would be lost if an fd that does not block took only some of them. */
  if (result < 0 && errno == ESPIPE && !(fcntl(fs->fd, F_GETFL) & O_NONBLOCK))
    result = read(fs->in_fd, data, size);
  if (result > 0)
    result = write_all(fs->fd, data, (size_t) result);
  free(data);
  return result;
}

/* Each is tried when those before it cannot do it. The last works with all
 * kinds of descriptors. */
static ssize_t (*const ways[])(pa_fs *, off_t, size_t) = {
#ifdef PA_LINUX
    copy_range,
    kernel_sendfile,
#endif
    read_and_write,
};
#define LAST_WAY ((int) (sizeof(ways) / sizeof(ways[0])) - 1)

/* Whether another way may do what this one could not. A result of 0 is the end
 * of the file, or a file of /proc: copy_file_range believes its size of 0, but
 * it can be read. */
static int may_another(ssize_t result) {
  return result == 0 ||
         (result < 0 && (errno == EINVAL || errno == ENOSYS || errno == EXDEV ||
                         errno == ENOTSOCK || errno == EOPNOTSUPP ||
                         errno == ESPIPE || errno == EIO));
}

/* In a thread of the pool. The loop's thread does not touch fs meanwhile. */
static void send_step(uv_work_t *work) {
  pa_fs *fs = CONTAINER_OF(work, pa_fs, work);
  off_t offset = (off_t) (fs->offset + (int64_t) fs->done);
  size_t size = fs->size - fs->done;
  ssize_t result;

  if (size > LARGEST_READ)
    size = LARGEST_READ;
  for (;;) {
    result = ways[fs->way](fs, offset, size);
    if (fs->way < LAST_WAY && may_another(result))
      fs->way++;
    else if (result >= 0 || errno != EINTR)
      break;
  }
  fs->sent = result < 0 ? uv_translate_sys_error(errno) : result;
}

/* Writes and sendfile, a step at a time until all is written. Each step is
 * begun in the loop's thread, so that the end of the loop can stop them in
 * between. */

static void on_written(uv_fs_t *uv);
static void on_sent(uv_work_t *work, int status);

static int transfer(pa_fs *fs) {
  uv_loop_t *loop = &fs->base.loop->uv;
  uv_buf_t buffer;

  if (fs->buffer == NULL)
    return uv_queue_work(loop, &fs->work, send_step, on_sent);
  buffer.base = fs->buffer + fs->done;
  buffer.len = fs->size - fs->done;
  return uv_fs_write(loop, &fs->uv, fs->fd, &buffer, 1,
                     fs->offset < 0 ? -1 : fs->offset + (int64_t) fs->done,
                     on_written);
}

static void transferred(pa_fs *fs, int64_t result) {
  if (result > 0) {
    fs->done += (size_t) result;
    if (fs->done < fs->size && !fs->base.loop->closing) {
      result = transfer(fs);
      if (result == 0)
        return;
    }
  }
  /* No error: a descriptor that does not block has taken some, and takes no
   * more; or (0) the file that is sent has ended. */
  if (result >= 0 || (result == UV_EAGAIN && fs->done > 0))
    result = (int64_t) fs->done;
  fs->outcome.result = result;
  pa_request_done(&fs->base);
}

static void on_written(uv_fs_t *uv) {
  int64_t result = uv->result;

  uv_fs_req_cleanup(uv);
  transferred(CONTAINER_OF(uv, pa_fs, uv), result);
}

static void on_sent(uv_work_t *work, int status) {
  pa_fs *fs = CONTAINER_OF(work, pa_fs, work);

  transferred(fs, status == 0 ? fs->sent : status);
}

int64_t pa_fs_write(pa_loop *loop, int fd, const char *data, size_t size,
                    int64_t offset) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  fs->buffer = malloc(size + 1);
  if (fs->buffer == NULL)
    return begin(fs, UV_ENOMEM);
  memcpy(fs->buffer, data, size);
  fs->fd = fd;
  fs->size = size;
  fs->offset = offset;
  return begin(fs, transfer(fs));
}

int64_t pa_fs_sendfile(pa_loop *loop, int out_fd, int in_fd, int64_t offset,
                       size_t size) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  fs->fd = out_fd;
  fs->in_fd = in_fd;
  fs->size = size;
  fs->offset = offset;
  return pa_request_begin(&fs->base, (uv_req_t *) &fs->work, transfer(fs));
}

static int duplicate(int fd, int *copy) {
  *copy = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  return *copy < 0 ? uv_translate_sys_error(errno) : 0;
}

int64_t pa_fs_send(pa_loop *loop, int slot, int in_fd, int64_t offset,
                   size_t size) {
  uv_os_fd_t out_fd = in_fd;
  pa_fs *fs;
  int error = 0;

  if (slot >= 0) {
    const uv_handle_t *handle = loop->slots[slot].handle;

    /* NULL: it has failed and is closed, and Python has yet to learn of it. */
    error = handle == NULL ? UV_EBADF : uv_fileno(handle, &out_fd);
  }
  if (error == 0)
    error = fs_new(loop, &fs);
  if (error != 0)
    return error;
  fs->size = size;
  fs->offset = offset;
  error = duplicate(in_fd, &fs->in_fd);
  fs->fd = fs->in_fd;
  if (error != 0)
    return begin(fs, error);
  fs->owns = 1;
  if (slot >= 0) {
    error = duplicate(out_fd, &fs->fd);
    if (error != 0)
      fs->fd = fs->in_fd;
    else
      error = transfer(fs);
    return pa_request_begin(&fs->base, (uv_req_t *) &fs->work, error);
  }
  fs->buffer = malloc(size + 1);
  return begin(fs, fs->buffer == NULL ? UV_ENOMEM : begin_read(fs));
}

int64_t pa_fs_close(pa_loop *loop, int fd) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0) {
    close(fd);
    return error;
  }
  fs->fd = fd;
  return begin(fs, uv_fs_close(&loop->uv, &fs->uv, fd, on_done));
}

int64_t pa_fs_fsync(pa_loop *loop, int fd) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_fsync(&loop->uv, &fs->uv, fd, on_done));
}

int64_t pa_fs_ftruncate(pa_loop *loop, int fd, int64_t size) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_ftruncate(&loop->uv, &fs->uv, fd, size, on_done));
}

/* Directories and names */

int64_t pa_fs_mkdir(pa_loop *loop, const char *path, int mode) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_mkdir(&loop->uv, &fs->uv, path, mode, on_done));
}

int64_t pa_fs_rmdir(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_rmdir(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_rename(pa_loop *loop, const char *path, const char *new_path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_rename(&loop->uv, &fs->uv, path, new_path, on_done));
}

int64_t pa_fs_unlink(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_unlink(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_scandir(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_scandir(&loop->uv, &fs->uv, path, 0, on_done));
}

int64_t pa_fs_readlink(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_readlink(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_mkdtemp(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_mkdtemp(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_symlink(pa_loop *loop, const char *target, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_symlink(&loop->uv, &fs->uv, target, path, 0, on_done));
}

int64_t pa_fs_link(pa_loop *loop, const char *path, const char *new_path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_link(&loop->uv, &fs->uv, path, new_path, on_done));
}

int64_t pa_fs_realpath(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_realpath(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_access(pa_loop *loop, const char *path, int mode) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_access(&loop->uv, &fs->uv, path, mode, on_done));
}

int64_t pa_fs_chmod(pa_loop *loop, const char *path, int mode) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_chmod(&loop->uv, &fs->uv, path, mode, on_done));
}

int64_t pa_fs_utime(pa_loop *loop, const char *path, double atime,
                    double mtime) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_utime(&loop->uv, &fs->uv, path, atime, mtime,
                               on_done));
}

int64_t pa_fs_copyfile(pa_loop *loop, const char *path, const char *new_path,
                       int flags) {
  pa_fs *fs;
  int error = fs_new(loop, &fs);

  if (error != 0)
    return error;
  return begin(fs, uv_fs_copyfile(&loop->uv, &fs->uv, path, new_path, flags,
                                  on_done));
}

/* Whole files, each in one step of a thread */

static int at_once(int64_t result) {
  return result < 0 ? uv_translate_sys_error(errno) : 0;
}

/* Reads until there is no more, because the size of a file of /proc is 0, and
 * another file may grow meanwhile. */
static int read_all(pa_fs *fs, int fd) {
  struct stat status;
  size_t capacity = COPY_SIZE;
  ssize_t result;

  if (fstat(fd, &status) == 0 && status.st_size > 0)
    capacity = (size_t) status.st_size + 1;  /* the read of the end needs it */
  for (;;) {
    if (fs->buffer == NULL || fs->done == capacity) {
      char *buffer;

      if (fs->buffer != NULL)
        capacity *= 2;
      buffer = realloc(fs->buffer, capacity);
      if (buffer == NULL)
        return UV_ENOMEM;
      fs->buffer = buffer;
    }
    result = read(fd, fs->buffer + fs->done, capacity - fs->done);
    if (result > 0)
      fs->done += (size_t) result;
    else if (result == 0 || errno != EINTR)
      return at_once(result);
  }
}

static int write_whole(pa_fs *fs, int fd) {
  while (fs->done < fs->size) {
    ssize_t result = write_all(fd, fs->buffer + fs->done, fs->size - fs->done);

    if (result < 0)
      return at_once(result);
    fs->done += (size_t) result;
  }
  return 0;
}

static int open_file(const char *path, int flags, int mode) {
  int fd;

  do
    fd = open(path, flags | O_CLOEXEC, (mode_t) mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

/* In a thread of the pool. The loop's thread does not touch fs meanwhile. */
static void whole_file(uv_work_t *work) {
  pa_fs *fs = CONTAINER_OF(work, pa_fs, work);
  int fd = open_file(fs->path, fs->flags, fs->mode);
  int error = at_once(fd);

  if (error == 0) {
    if (fs->flags == O_RDONLY)
      error = read_all(fs, fd);
    else
      error = write_whole(fs, fd);
    /* A network file system may tell only now that it could not write. After
     * EINTR the descriptor is closed all the same. */
    if (close(fd) < 0 && errno != EINTR && error == 0 && fs->flags != O_RDONLY)
      error = at_once(-1);
  }
  fs->sent = error;
}

static void on_whole_file(uv_work_t *work, int status) {
  pa_fs *fs = CONTAINER_OF(work, pa_fs, work);
  pa_fs_outcome *outcome = &fs->outcome;

  outcome->result = status == 0 ? fs->sent : status;
  outcome->data = fs->buffer;
  outcome->size = fs->done;
  pa_request_done(&fs->base);
}

static int64_t begin_whole(pa_loop *loop, pa_fs *fs, const char *path) {
  int error = UV_ENOMEM;

  fs->path = strdup(path);
  if (fs->path != NULL)
    error = uv_queue_work(&loop->uv, &fs->work, whole_file, on_whole_file);
  return pa_request_begin(&fs->base, (uv_req_t *) &fs->work, error);
}

int64_t pa_fs_read_file(pa_loop *loop, const char *path) {
  pa_fs *fs;
  int error = pa_open_standard_streams();

  if (error == 0)
    error = fs_new(loop, &fs);
  if (error != 0)
    return error;
  fs->flags = O_RDONLY;
  return begin_whole(loop, fs, path);
}

int64_t pa_fs_write_file(pa_loop *loop, const char *path, const char *data,
                         size_t size, int mode) {
  pa_fs *fs;
  int error = pa_open_standard_streams();

  if (error == 0)
    error = fs_new(loop, &fs);
  if (error != 0)
    return error;
  fs->buffer = malloc(size + 1);
  if (fs->buffer == NULL)
    return begin(fs, UV_ENOMEM);
  memcpy(fs->buffer, data, size);
  fs->size = size;
  fs->flags = O_WRONLY | O_CREAT | O_TRUNC;
  fs->mode = mode;
  return begin_whole(loop, fs, path);
}

/* Results of a request that is over */

pa_fs_outcome *pa_fs_result(int64_t request) {
  return &((pa_fs *) pa_request_at(request))->outcome;
}

const uv_stat_t *pa_fs_result_stat(int64_t request) {
  return &((pa_fs *) pa_request_at(request))->uv.statbuf;
}

void pa_fs_take(int64_t request) {
  ((pa_fs *) pa_request_at(request))->taken = 1;
}
