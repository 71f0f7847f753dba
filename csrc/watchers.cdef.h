/* What asks libuv to look at something in each iteration. */

/* Reports PA_IDLE once an iteration, which then does not sleep. Returns a
 * slot, or an error. */
int pa_idle_start(pa_loop *loop);

/* Watches a duplicate of fd for UV_READABLE, UV_WRITABLE or both, or for
 * nothing. Returns a slot, or an error: UV_EPERM for what has no readiness. */
int pa_poll_start(pa_loop *loop, int fd, int events);
void pa_poll_modify(pa_loop *loop, int slot, int events);
