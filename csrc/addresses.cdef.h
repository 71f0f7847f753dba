/* Addresses. Between Python and C they are packed, in both directions:
 *
 *   uint16_t family   AF_INET or AF_INET6; of UDP also AF_UNSPEC: to the peer
 *                     to which the socket is connected, and nothing of what
 *                     follows is there
 *   uint16_t port     in network order, as are the next two
 *   uint32_t flowinfo AF_INET6 only
 *   uint8_t address[] 4 or 16
 *   uint32_t scope    AF_INET6 only
 */

/* The number of the interface that has the address; its port and scope do not
 * count. 0: there is none, or several; or an error. */
int pa_interface_with(const char *address);
