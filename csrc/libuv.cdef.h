/* libuv's own functions, under their own names (docs.libuv.org). */
const char *uv_version_string(void);
const char *uv_strerror(int err);
const char *uv_err_name(int err);
