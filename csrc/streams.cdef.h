/* Connected streams, of whatever kind. */

/* Performs the operations, then writes size bytes of data to the stream,
 * together with what the operations have written to it. */
void pa_write(pa_loop *loop, const int64_t *operations, int count,
              const char *payload, int slot, const char *data, size_t size,
              int callback);
/* Bytes that the kernel has not taken yet. */
size_t pa_write_queue_size(pa_loop *loop, int slot);
/* Bytes that it has taken, but not sent yet; 0 where the system does not say. */
size_t pa_unsent_size(pa_loop *loop, int slot);
