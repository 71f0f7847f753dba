/* Servers and clients. Functions that return int give a slot, or an error. */

/* Accepts at fd, a listening socket, at most limit connections (-1: any number)
 * until PA_ACCEPT allows more. fd is the loop's then; the caller's still if it
 * fails. */
int pa_listen(pa_loop *loop, int fd, int kind, int limit);
/* Adopts fd, a connected socket, and, if read is nonzero, reads from it. fd is
 * the loop's, also if it fails: then it is closed. */
int pa_open(pa_loop *loop, int fd, int kind, int read);
/* The same for a TCP socket, which is reported by PA_CONNECTED: that record
 * begins the next batch, so that no data comes before it. */
int pa_adopt(pa_loop *loop, int fd);
/* Connects to a packed address, from local_address unless that is NULL. Only
 * the failure to bind to that is returned as an error, and, with may_retry, that
 * to make a socket; all others are reported by PA_CONNECTED. */
int pa_tcp_connect(pa_loop *loop, const char *address,
                   const char *local_address, int may_retry);
