/* libuv's own functions, under their own names (docs.libuv.org). */
const char *uv_version_string(void);
uint64_t uv_hrtime(void);
const char *uv_strerror(int err);
const char *uv_err_name(int err);
#define UV_EAI_ADDRFAMILY ...
#define UV_EAI_AGAIN ...
#define UV_EAI_BADFLAGS ...
#define UV_EAI_FAIL ...
#define UV_EAI_FAMILY ...
#define UV_EAI_MEMORY ...
#define UV_EAI_NODATA ...
#define UV_EAI_NONAME ...
#define UV_EAI_OVERFLOW ...
#define UV_EAI_SERVICE ...
#define UV_EAI_SOCKTYPE ...

enum uv_fs_event { UV_RENAME, UV_CHANGE, ... };
#define UV_FS_COPYFILE_EXCL ...

typedef struct {
  long tv_sec;
  long tv_nsec;
} uv_timespec_t;

typedef struct {
  uint64_t st_dev;
  uint64_t st_mode;
  uint64_t st_nlink;
  uint64_t st_uid;
  uint64_t st_gid;
  uint64_t st_rdev;
  uint64_t st_ino;
  uint64_t st_size;
  uint64_t st_blksize;
  uint64_t st_blocks;
  uv_timespec_t st_atim;
  uv_timespec_t st_mtim;
  uv_timespec_t st_ctim;
  ...;
} uv_stat_t;

enum uv_poll_event { UV_READABLE, UV_WRITABLE, UV_DISCONNECT, ... };

/* if_nametoindex(3): PyPy has none. */
#define IF_NAMESIZE ...
unsigned int if_nametoindex(const char *name);
char *if_indextoname(unsigned int index, char *name);
