/* Idlers and pollers. */

/* Reports PA_IDLE in each iteration, none of which sleeps then. Returns a
 * slot, or an error. */
int pa_idle_start(pa_loop *loop);

/* Watches a duplicate of fd for UV_READABLE, UV_WRITABLE, both, or nothing (0).
 * Returns a slot, or an error: UV_EPERM for a file or a directory, as they
 * cannot be polled. */
int pa_poll_start(pa_loop *loop, int fd, int events);
void pa_poll_modify(pa_loop *loop, int slot, int events);
