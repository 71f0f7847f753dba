/* Requests that libuv performs in a thread of its pool, whatever they ask for.
 * Python knows one by its address, which the call that begins it returns; a
 * negative number is the error of a request that could not begin. When it is
 * over PA_DONE has the address for its value: then Python reads the result,
 * and frees the request. */
typedef struct pa_request pa_request;

void pa_request_free(pa_loop *loop, int64_t request);
/* A request that no thread has begun ends with UV_ECANCELED; another goes on
 * to its end. */
void pa_request_cancel(pa_loop *loop, int64_t request);
