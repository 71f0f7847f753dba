/* UDP sockets. A datagram crosses like a stream's data (PA_READ, PA_WRITE), and
 * in both directions its peer's packed address stands before it. */

/* Receives from fd, a UDP socket. Returns a slot, or an error. fd is the
 * loop's, also if it fails: then it is closed. */
int pa_udp_open(pa_loop *loop, int fd);
/* The others return 0 or an error. */
int pa_udp_connect(pa_loop *loop, int slot, const char *address);
/* Joins the group, or leaves it. index is an interface's number; 0: the
 * system chooses. source: the only address to receive datagrams from; NULL:
 * from all. */
int pa_udp_membership(pa_loop *loop, int slot, const char *group,
                      unsigned index, const char *source, int join);
/* Bytes of the blocked datagrams, which the kernel has refused for now. */
size_t pa_udp_send_queue_size(pa_loop *loop, int slot);
