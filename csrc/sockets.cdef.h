/* Names and options of the socket of a handle. Not by Python's socket module,
 * because an object on the handle's descriptor would close that when it is
 * collected. */

/* Both set name to a packed address, which may also be that of a pipe: the
 * family, AF_UNIX, and the path or the abstract name (unix(7)). They return its
 * size, or an error. */
#define PA_NAME_MAX 256
int pa_getpeername(pa_loop *loop, int slot, char *name);
int pa_getsockname(pa_loop *loop, int slot, char *name);
/* Returns the size of the value, or an error. */
int pa_getsockopt(pa_loop *loop, int slot, int level, int option, char *value,
                  unsigned size);
int pa_setsockopt(pa_loop *loop, int slot, int level, int option,
                  const char *value, unsigned size);

/* The socket option that tells who the peer of a pipe is (unix(7)); -1 where
 * the system has none. From C, because PyPy's module socket lacks it. */
int pa_peercred_option(void);
/* Whether the descriptor is such a socket, and does not listen. From C, because
 * on PyPy a socket object changes O_NONBLOCK when it is made. */
int pa_is_stream_socket(int fd);
