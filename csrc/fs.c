/* Operations on files. */
#include "pyasync.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Linux's read(2) gives no more at once. */
#define LARGEST_READ 0x7ffff000

typedef struct {
  pa_request base;
  uv_fs_t uv;
  pa_fs_outcome outcome;
  int taken;
  int fd;          /* to be closed, or written to */
  int in_fd;       /* of a sendfile */
  int64_t offset;
  size_t size;     /* to be read or written */
  size_t done;     /* of it */
  char *buffer;
} pa_fs;

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
  uv_fs_req_cleanup(&fs->uv);
  free(fs->buffer);
  free(fs);
}

static pa_fs *fs_new(pa_loop *loop) {
  pa_fs *fs = pa_grow(NULL, sizeof(*fs));

  loop->counters->crossings++;
  memset(fs, 0, sizeof(*fs));
  fs->base.release = release;
  fs->base.loop = loop;
  fs->outcome.result = UV_ECANCELED;
  return fs;
}

static int64_t begin(pa_fs *fs, int error) {
  return pa_request_begin(fs->base.loop, &fs->base, (uv_req_t *) &fs->uv,
                          error);
}

/* Joins the entries: Python asks once for all of them. */
static void pack_entries(pa_fs *fs) {
  size_t capacity = 0;
  size_t used = 0;
  uv_dirent_t entry;

  while (uv_fs_scandir_next(&fs->uv, &entry) == 0) {
    size_t size = strlen(entry.name) + 1;

    if (used + 1 + size > capacity) {
      capacity = 2 * (capacity + size) + 1024;
      fs->buffer = pa_grow(fs->buffer, capacity);
    }
    fs->buffer[used++] = (char) ('0' + entry.type);
    memcpy(fs->buffer + used, entry.name, size);
    used += size;
  }
  fs->outcome.data = fs->buffer;
  fs->outcome.size = used;
}

static void set_text(pa_fs_outcome *outcome, const char *text) {
  outcome->data = text;
  outcome->size = strlen(text);
}

static void on_done(uv_fs_t *uv) {
  pa_fs *fs = CONTAINER_OF(uv, pa_fs, uv);
  pa_fs_outcome *outcome = &fs->outcome;

  outcome->result = uv->result;
  if (uv->result >= 0) {
    switch (uv->fs_type) {
      case UV_FS_READ:
        outcome->data = fs->buffer;
        outcome->size = (size_t) uv->result;
        break;
      case UV_FS_SCANDIR:
        pack_entries(fs);
        break;
      case UV_FS_READLINK:
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
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_stat(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_lstat(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_lstat(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_fstat(pa_loop *loop, int fd) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_fstat(&loop->uv, &fs->uv, fd, on_done));
}

int64_t pa_fs_open(pa_loop *loop, const char *path, int flags, int mode) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_open(&loop->uv, &fs->uv, path, flags, mode, on_done));
}

int64_t pa_fs_read(pa_loop *loop, int fd, size_t size, int64_t offset) {
  pa_fs *fs = fs_new(loop);
  uv_buf_t buffer;

  if (size > LARGEST_READ)
    size = LARGEST_READ;
  fs->buffer = malloc(size + 1);
  if (fs->buffer == NULL)
    return begin(fs, UV_ENOMEM);
  buffer.base = fs->buffer;
  buffer.len = size;
  return begin(
      fs, uv_fs_read(&loop->uv, &fs->uv, fd, &buffer, 1, offset, on_done));
}

/* Writes and sendfile */

static void on_transferred(uv_fs_t *uv);

static int transfer(pa_fs *fs) {
  uv_loop_t *loop = &fs->base.loop->uv;
  int64_t offset = fs->offset < 0 ? -1 : fs->offset + (int64_t) fs->done;
  size_t left = fs->size - fs->done;
  uv_buf_t buffer;

  if (fs->buffer == NULL)
    return uv_fs_sendfile(loop, &fs->uv, fs->fd, fs->in_fd, offset, left,
                          on_transferred);
  buffer.base = fs->buffer + fs->done;
  buffer.len = left;
  return uv_fs_write(loop, &fs->uv, fs->fd, &buffer, 1, offset,
                     on_transferred);
}

static void on_transferred(uv_fs_t *uv) {
  pa_fs *fs = CONTAINER_OF(uv, pa_fs, uv);
  int64_t result = uv->result;

  if (result > 0) {
    fs->done += (size_t) result;
    if (fs->done < fs->size && !fs->base.loop->closing) {
      uv_fs_req_cleanup(uv);
      result = transfer(fs);
      if (result == 0)
        return;
    }
  }
  /* What a descriptor that does not block takes no more of is no error, nor is
   * the end of the file that is sent. */
  if (result >= 0 || (result == UV_EAGAIN && fs->done > 0))
    result = (int64_t) fs->done;
  fs->outcome.result = result;
  pa_request_done(&fs->base);
}

int64_t pa_fs_write(pa_loop *loop, int fd, const char *data, size_t size,
                    int64_t offset) {
  pa_fs *fs = fs_new(loop);

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
  pa_fs *fs = fs_new(loop);

  fs->fd = out_fd;
  fs->in_fd = in_fd;
  fs->size = size;
  fs->offset = offset;
  return begin(fs, transfer(fs));
}

int64_t pa_fs_close(pa_loop *loop, int fd) {
  pa_fs *fs = fs_new(loop);

  fs->fd = fd;
  return begin(fs, uv_fs_close(&loop->uv, &fs->uv, fd, on_done));
}

/* Directories and names */

int64_t pa_fs_mkdir(pa_loop *loop, const char *path, int mode) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_mkdir(&loop->uv, &fs->uv, path, mode, on_done));
}

int64_t pa_fs_rmdir(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_rmdir(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_rename(pa_loop *loop, const char *path, const char *new_path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs,
               uv_fs_rename(&loop->uv, &fs->uv, path, new_path, on_done));
}

int64_t pa_fs_unlink(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_unlink(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_scandir(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_scandir(&loop->uv, &fs->uv, path, 0, on_done));
}

int64_t pa_fs_readlink(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_readlink(&loop->uv, &fs->uv, path, on_done));
}

int64_t pa_fs_mkdtemp(pa_loop *loop, const char *path) {
  pa_fs *fs = fs_new(loop);

  return begin(fs, uv_fs_mkdtemp(&loop->uv, &fs->uv, path, on_done));
}

/* What Python asks of a request that is over */

pa_fs_outcome *pa_fs_result(int64_t request) {
  return &((pa_fs *) pa_request_at(request))->outcome;
}

const uv_stat_t *pa_fs_result_stat(int64_t request) {
  return &((pa_fs *) pa_request_at(request))->uv.statbuf;
}

void pa_fs_take(int64_t request) {
  ((pa_fs *) pa_request_at(request))->taken = 1;
}
