/* Servers and clients. Functions that return int give a slot, or an error. */

/* Takes over fd, a listening socket, and accepts at most limit connections
 * (-1: any number) until PA_ACCEPT allows more. */
int pa_listen(pa_loop *loop, int fd, int kind, int limit);
/* Takes over fd, a connected socket, and reads from it. */
int pa_open(pa_loop *loop, int fd, int kind);
/* Connects to a packed address, from local_address unless that is NULL.
 * A failure to connect comes as PA_CONNECTED. */
int pa_tcp_connect(pa_loop *loop, const char *address,
                   const char *local_address);
