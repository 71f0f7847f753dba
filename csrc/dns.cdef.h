/* Lookups of names and addresses. */
typedef struct {
  int32_t family;
  char text[64];  /* numeric, with %scope if it has one */
} pa_address;

typedef struct {
  int32_t status;
  int32_t count;
  pa_address *addresses;
} pa_found;

/* family is a number of the socket module; 0: any. */
int64_t pa_getaddrinfo(pa_loop *loop, const char *host, int family);
/* The result of a request of pa_getaddrinfo: good until that is freed. */
pa_found *pa_getaddrinfo_result(int64_t request);

typedef struct {
  int32_t status;
  const char *host;
  const char *service;
} pa_name;

/* address is packed. */
int64_t pa_getnameinfo(pa_loop *loop, const char *address);
pa_name *pa_getnameinfo_result(int64_t request);
