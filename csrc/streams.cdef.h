/* Connected streams: TCP, pipes, the stdio of children, and descriptors that the
 * application has. */

/* Makes a stream on a terminal, a pipe or a socket, and leaves fd itself to the
 * caller. What others share is put back when the stream is closed: O_NONBLOCK,
 * and the mode of a terminal. read: the stream is read. Returns its slot, or an
 * error. */
int pa_open_descriptor(pa_loop *loop, int fd, int read);

/* Writes size bytes of data to the stream, now. callback: whether the write has
 * one. Returns how many bytes the kernel has refused, of this write and those
 * before it, or the error with which one has failed: PA_BLOCKED and
 * PA_WRITE_ERROR say the same later. */
int64_t pa_write(pa_loop *loop, int slot, const char *data, size_t size,
              int callback);
/* Performs the operations, and then writes: in one system call with what they
 * have written to the same stream. */
int64_t pa_submit_and_write(pa_loop *loop, const char *operations, int count,
                            const char *payload, int slot, const char *data,
                            size_t size, int callback);
/* Bytes of the blocked writes, which the kernel has not taken yet. */
size_t pa_write_queue_size(pa_loop *loop, int slot);
/* Bytes that the kernel has taken, but not sent yet; 0 where the system does
 * not say. */
size_t pa_unsent_size(pa_loop *loop, int slot);
