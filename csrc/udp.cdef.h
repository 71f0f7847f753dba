/* UDP sockets. A datagram crosses in both directions behind its peer's packed
 * address, in the same way as a stream's data (PA_READ, PA_WRITE). */

/* Takes over fd, a UDP socket, and receives. Returns a slot, or an error. */
int pa_udp_open(pa_loop *loop, int fd);
/* The others return 0 or an error. Addresses are numeric; an interface is one
 * of its addresses, or of IPv6 one with %scope; NULL: the system's choice. */
int pa_udp_connect(pa_loop *loop, int slot, const char *address);
/* source: of whom alone to receive the group's datagrams, or NULL. */
int pa_udp_membership(pa_loop *loop, int slot, const char *group,
                      const char *interface, const char *source, int join);
int pa_udp_multicast_interface(pa_loop *loop, int slot, const char *interface);
/* Bytes of the datagrams that the kernel has refused for now. */
size_t pa_udp_send_queue_size(pa_loop *loop, int slot);
