/* libuv's own functions, under their own names (docs.libuv.org). */
const char *uv_version_string(void);
const char *uv_strerror(int err);
const char *uv_err_name(int err);
#define UV_EAI_ADDRFAMILY ...
#define UV_EAI_NONAME ...

enum uv_poll_event { UV_READABLE, UV_WRITABLE, UV_DISCONNECT, ... };

/* if_nametoindex(3): PyPy has none. */
unsigned int if_nametoindex(const char *name);
