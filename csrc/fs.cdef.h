/* Operations on files: requests, each of which libuv performs in a thread. A
 * path ends with a zero byte; it and the data of a write are copied. An offset
 * of -1 is the descriptor's own position. */
typedef struct {
  int64_t result;    /* a descriptor, a size, or an error */
  const char *data;  /* what was read, or the path; of a scandir, for each entry
                        '0' + its uv_dirent_type_t, its name, and a zero byte */
  size_t size;       /* of the data */
} pa_fs_outcome;

int64_t pa_fs_stat(pa_loop *loop, const char *path);
int64_t pa_fs_lstat(pa_loop *loop, const char *path);
int64_t pa_fs_fstat(pa_loop *loop, int fd);
int64_t pa_fs_open(pa_loop *loop, const char *path, int flags, int mode);
int64_t pa_fs_read(pa_loop *loop, int fd, size_t size, int64_t offset);
/* This and pa_fs_sendfile go on after a short write, until a descriptor that
 * does not block takes no more: then the result is what it has taken. */
int64_t pa_fs_write(pa_loop *loop, int fd, const char *data, size_t size,
                    int64_t offset);
int64_t pa_fs_sendfile(pa_loop *loop, int out_fd, int in_fd, int64_t offset,
                       size_t size);
/* Closes fd in any case: when the request is cancelled, as that is freed. */
int64_t pa_fs_close(pa_loop *loop, int fd);
int64_t pa_fs_mkdir(pa_loop *loop, const char *path, int mode);
int64_t pa_fs_rmdir(pa_loop *loop, const char *path);
int64_t pa_fs_rename(pa_loop *loop, const char *path, const char *new_path);
int64_t pa_fs_unlink(pa_loop *loop, const char *path);
int64_t pa_fs_scandir(pa_loop *loop, const char *path);
int64_t pa_fs_readlink(pa_loop *loop, const char *path);
int64_t pa_fs_mkdtemp(pa_loop *loop, const char *path);

/* These are of the request, until it is freed. */
pa_fs_outcome *pa_fs_result(int64_t request);
const uv_stat_t *pa_fs_result_stat(int64_t request);
/* What was opened or made is Python's now. What it does not take is closed, or
 * removed, as the request is freed. */
void pa_fs_take(int64_t request);
