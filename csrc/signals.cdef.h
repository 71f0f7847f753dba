/* Returns a slot, or an error. The disposition that the signal had before
 * the first handler in the process is put back after the last. */
int pa_signal_start(pa_loop *loop, int signum);
/* In the child of a fork: puts back all dispositions. */
void pa_signals_after_fork(void);
