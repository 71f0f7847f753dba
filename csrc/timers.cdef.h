/* The delay heap: any number of timers, driven by one uv_timer_t. When a timer
 * is due, in milliseconds of uv_now(); 0 if it is not in the heap. */
int64_t pa_timer_due(pa_loop *loop, int slot);
