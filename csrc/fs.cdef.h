/* Operations on files: each is a request, and returns its address or an error.
 * A path ends with a zero byte; paths and the data of writes are copied. An
 * offset of -1 is the descriptor's own position. */
typedef struct {
  int64_t result;    /* a descriptor, a size, or an error */
  const char *data;  /* the data that was read, or the path of a readlink, realpath
                        or mkdtemp; of a scandir, for each entry '0' + its
                        uv_dirent_type_t, its name, and a zero byte */
  size_t size;       /* of the data */
} pa_fs_outcome;

int64_t pa_fs_stat(pa_loop *loop, const char *path);
int64_t pa_fs_lstat(pa_loop *loop, const char *path);
int64_t pa_fs_fstat(pa_loop *loop, int fd);
int64_t pa_fs_open(pa_loop *loop, const char *path, int flags, int mode);
int64_t pa_fs_read(pa_loop *loop, int fd, size_t size, int64_t offset);
/* This and pa_fs_sendfile go on after a short write, until all is written, or a
 * descriptor that does not block takes no more. The result is the size that
 * was written. */
int64_t pa_fs_write(pa_loop *loop, int fd, const char *data, size_t size,
                    int64_t offset);
int64_t pa_fs_sendfile(pa_loop *loop, int out_fd, int in_fd, int64_t offset,
                       size_t size);
/* Sends a piece of a file on the stream in slot, as pa_fs_sendfile does; with
 * slot -1 reads it, as pa_fs_read does. On duplicates of both descriptors, so
 * that the caller may close them meanwhile. */
int64_t pa_fs_send(pa_loop *loop, int slot, int in_fd, int64_t offset,
                   size_t size);
/* Closes fd in any case: a request that was cancelled closes it when it is
 * freed. */
int64_t pa_fs_close(pa_loop *loop, int fd);
int64_t pa_fs_mkdir(pa_loop *loop, const char *path, int mode);
int64_t pa_fs_rmdir(pa_loop *loop, const char *path);
int64_t pa_fs_rename(pa_loop *loop, const char *path, const char *new_path);
int64_t pa_fs_unlink(pa_loop *loop, const char *path);
int64_t pa_fs_scandir(pa_loop *loop, const char *path);
int64_t pa_fs_readlink(pa_loop *loop, const char *path);
int64_t pa_fs_mkdtemp(pa_loop *loop, const char *path);
int64_t pa_fs_fsync(pa_loop *loop, int fd);
int64_t pa_fs_ftruncate(pa_loop *loop, int fd, int64_t size);
int64_t pa_fs_symlink(pa_loop *loop, const char *target, const char *path);
int64_t pa_fs_link(pa_loop *loop, const char *path, const char *new_path);
int64_t pa_fs_realpath(pa_loop *loop, const char *path);
int64_t pa_fs_access(pa_loop *loop, const char *path, int mode);
int64_t pa_fs_chmod(pa_loop *loop, const char *path, int mode);
int64_t pa_fs_utime(pa_loop *loop, const char *path, double atime,
                    double mtime);
/* With the flag UV_FS_COPYFILE_EXCL, or 0. */
int64_t pa_fs_copyfile(pa_loop *loop, const char *path, const char *new_path,
                       int flags);
/* They open the file, read or write all of it, and close it. */
int64_t pa_fs_read_file(pa_loop *loop, const char *path);
int64_t pa_fs_write_file(pa_loop *loop, const char *path, const char *data,
                         size_t size, int mode);

/* Results: good until the request is freed. */
pa_fs_outcome *pa_fs_result(int64_t request);
const uv_stat_t *pa_fs_result_stat(int64_t request);
/* Python keeps the descriptor that was opened, or the directory that mkdtemp
 * has made. Without this call the first is closed, and the second removed, when
 * the request is freed. */
void pa_fs_take(int64_t request);
