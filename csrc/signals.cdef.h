/* Reports each signal of the number by PA_SIGNAL. Returns a slot, or an error.
 * After the last handler for a signal in the process its disposition is as it
 * was before the first. */
int pa_signal_start(pa_loop *loop, int signum);
/* Around each fork: a lock is held meanwhile, and all signals are blocked. In
 * the child the second one stops the handlers of all loops, which puts back all
 * dispositions. */
void pa_signals_before_fork(void);
void pa_signals_after_fork(int in_child);
