/* Requests that libuv performs in a thread of its pool, of all kinds. Python
 * knows a request by its address, which the call that begins it returns; a
 * negative number is the error of a request that could not begin. PA_DONE says
 * that the request is over; its value is the address. Then Python reads the
 * result, and frees the request. */
void pa_request_free(pa_loop *loop, int64_t request);
/* A request that no thread has begun yet ends with UV_ECANCELED. One that a
 * thread works on goes on to its end, because libuv cannot stop that. */
void pa_request_cancel(pa_loop *loop, int64_t request);
