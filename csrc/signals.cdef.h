/* Returns a slot, or an error. The disposition that the signal had before
 * the first handler in the process is put back after the last. */
int pa_signal_start(pa_loop *loop, int signum);
/* Around a fork. In the child they stop all handlers, of all loops, which puts
 * back all dispositions. */
void pa_signals_before_fork(void);
void pa_signals_after_fork(int in_child);
