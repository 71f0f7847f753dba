/* Lookups of names and addresses, in libuv's thread pool. */
typedef struct {
  int32_t family;
  char text[64];  /* numeric, with %scope where there is one */
} pa_address;

/* What a lookup has found, as PA_DONE gives it. Python frees it. */
typedef struct pa_found {
  struct pa_found *next;
  int32_t status;
  int32_t count;
  pa_address *addresses;
} pa_found;

/* Starts a lookup, which will end with PA_DONE under its number. Returns 0, or
 * an error. family is a number of the socket module; 0: any. */
int pa_getaddrinfo(pa_loop *loop, int number, const char *host, int family);
void pa_found_free(pa_loop *loop, pa_found *found);
/* A lookup that has not begun yet ends with UV_ECANCELED; another goes on. */
void pa_lookup_cancel(pa_loop *loop, int number);
