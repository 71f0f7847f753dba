/* Addresses. Between Python and C they are packed, in both directions:
 *
 *   uint16_t family   AF_INET or AF_INET6. For UDP also AF_UNSPEC, without
 *                     the fields below: the peer that the socket is
 *                     connected to
 *   uint16_t port     in network order, as are the next two
 *   uint32_t flowinfo AF_INET6 only
 *   uint8_t address[] 4 or 16
 *   uint32_t scope    AF_INET6 only
 */

/* Returns the number of the interface that has the address; 0 if none has it,
 * or several have; or an error. The address's port and scope are not used. */
int pa_interface_with(const char *address);
