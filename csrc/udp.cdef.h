/* UDP sockets. A datagram crosses in both directions behind its peer's packed
 * address, in the same way as a stream's data (PA_READ, PA_WRITE). */

/* Takes over fd, a UDP socket, and receives. Returns a slot, or an error. */
int pa_udp_open(pa_loop *loop, int fd);
/* The others return 0 or an error. */
int pa_udp_connect(pa_loop *loop, int slot, const char *address);
/* interface is its number; 0: the system's choice. source: the address whose
 * datagrams alone are received, or NULL. */
int pa_udp_membership(pa_loop *loop, int slot, const char *group,
                      unsigned interface, const char *source, int join);
/* Bytes of the datagrams that the kernel has refused for now. */
size_t pa_udp_send_queue_size(pa_loop *loop, int slot);
