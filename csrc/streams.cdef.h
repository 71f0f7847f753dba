/* Connected streams, of whatever kind. */

/* Writes size bytes of data to the stream, now. */
void pa_write(pa_loop *loop, int slot, const char *data, size_t size,
              int callback);
/* The same, when the operations are done: together with what they have written
 * to the stream. */
void pa_submit_and_write(pa_loop *loop, const char *operations, int count,
                         const char *payload, int slot, const char *data,
                         size_t size, int callback);
/* Bytes that the kernel has not taken yet. */
size_t pa_write_queue_size(pa_loop *loop, int slot);
/* Bytes that it has taken, but not sent yet; 0 where the system does not say. */
size_t pa_unsent_size(pa_loop *loop, int slot);
