/* The programs of bench/peers in C on libuv: what pyasync is compared with.
 *
 *   peer http DELAY_SECONDS | echo | accept | udp
 *   peer timers fire|cancel|pending COUNT SPREAD_SECONDS
 *   peer connect PORT CONNECTIONS SECONDS
 *   peer wakeups SECONDS
 *
 * bench/peers/peer.py says what each does. What is not here ends with exit
 * status 3. As C programs do, each connection and timer has a handle of its own
 * from malloc, and all connections share a buffer to read into.
 */
#include <uv.h>

#include "common.h"

static char input[256 * 1024];

#define CHECK(call) check(call, #call)

static void check(int status, const char* what) {
  if (status < 0) {
    fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
    exit(1);
  }
}

/* User and system time of this process. */
static double cpu_seconds(void) {
  return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

static void on_alloc(uv_handle_t* handle, size_t size, uv_buf_t* buf) {
  *buf = uv_buf_init(input, sizeof input);
}

static void on_close_free(uv_handle_t* handle) {
  free(handle);
}

static void serve(const struct sockaddr_in* address) {
  printf("listening on 127.0.0.1:%d\n", ntohs(address->sin_port));
  fflush(stdout);
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}

static void serve_tcp(uv_connection_cb on_connection) {
  static uv_tcp_t listener;
  struct sockaddr_in address = loopback("0");
  int size = sizeof address;
  CHECK(uv_tcp_init(uv_default_loop(), &listener));
  CHECK(uv_tcp_bind(&listener, (struct sockaddr*) &address, 0));
  CHECK(uv_listen((uv_stream_t*) &listener, SOMAXCONN, on_connection));
  CHECK(uv_tcp_getsockname(&listener, (struct sockaddr*) &address, &size));
  serve(&address);
}

/* The connection is at the beginning of so many bytes. */
static void* accept_connection(uv_stream_t* server, int status, size_t size) {
  uv_tcp_t* tcp = allocate(size);
  check(status, "accept");
  CHECK(uv_tcp_init(server->loop, tcp));
  CHECK(uv_accept(server, (uv_stream_t*) tcp));
  return tcp;
}

/* http: waits after data, then writes the response and closes. */

typedef struct {
  uv_tcp_t tcp;
  uv_timer_t timer;
  uv_write_t write;
  int handles; /* how many of the two handles are not closed yet */
} http_t;

static uint64_t delay_ms;

static void on_http_close(uv_handle_t* handle) {
  http_t* connection = handle->data;
  if (--connection->handles == 0)
    free(connection);
}

static void close_http(http_t* connection) {
  if (uv_is_closing((uv_handle_t*) &connection->tcp))
    return;
  uv_close((uv_handle_t*) &connection->tcp, on_http_close);
  uv_close((uv_handle_t*) &connection->timer, on_http_close);
}

static void on_http_write(uv_write_t* write, int status) {
  close_http(write->handle->data);
}

static void respond(uv_timer_t* timer) {
  http_t* connection = timer->data;
  uv_stream_t* stream = (uv_stream_t*) &connection->tcp;
  uv_buf_t buf = uv_buf_init(RESPONSE, sizeof RESPONSE - 1);
  if (uv_write(&connection->write, stream, &buf, 1, on_http_write) != 0)
    close_http(connection);
}

static void on_http_read(uv_stream_t* stream, ssize_t size,
                         const uv_buf_t* buf) {
  http_t* connection = stream->data;
  if (size < 0)
    close_http(connection);
  else if (size == 0 || uv_is_active((uv_handle_t*) &connection->timer))
    return;
  else if (delay_ms == 0)
    respond(&connection->timer);
  else
    uv_timer_start(&connection->timer, respond, delay_ms, 0);
}

static void on_http_connection(uv_stream_t* server, int status) {
  http_t* connection = accept_connection(server, status, sizeof *connection);
  CHECK(uv_timer_init(server->loop, &connection->timer));
  connection->tcp.data = connection->timer.data = connection;
  connection->handles = 2;
  CHECK(uv_read_start((uv_stream_t*) connection, on_alloc, on_http_read));
}

static void http(char** words) {
  delay_ms = (uint64_t) (atof(words[0]) * 1000);
  serve_tcp(on_http_connection);
}

/* echo: what the kernel does not take at once is copied. */

typedef struct {
  uv_write_t write;
  char data[];
} pending_t;

static void on_echo_write(uv_write_t* write, int status) {
  free(write);
}

static void on_echo_read(uv_stream_t* stream, ssize_t size,
                         const uv_buf_t* buf) {
  uv_buf_t rest = uv_buf_init(buf->base, size > 0 ? (unsigned) size : 0);
  pending_t* pending;
  int sent;
  if (size < 0)
    uv_close((uv_handle_t*) stream, on_close_free);
  if (size <= 0 || (sent = uv_try_write(stream, &rest, 1)) == size)
    return;
  if (sent < 0)
    sent = 0;
  pending = allocate(sizeof *pending + size - sent);
  memcpy(pending->data, buf->base + sent, size - sent);
  rest = uv_buf_init(pending->data, (unsigned) (size - sent));
  CHECK(uv_write(&pending->write, stream, &rest, 1, on_echo_write));
}

static void on_echo_connection(uv_stream_t* server, int status) {
  uv_tcp_t* connection = accept_connection(server, status, sizeof *connection);
  uv_tcp_nodelay(connection, 1);
  CHECK(uv_read_start((uv_stream_t*) connection, on_alloc, on_echo_read));
}

static void echo(char** words) {
  serve_tcp(on_echo_connection);
}

/* accept */

static void on_accept_connection(uv_stream_t* server, int status) {
  uv_handle_t* connection = accept_connection(server, status, sizeof(uv_tcp_t));
  uv_close(connection, on_close_free);
}

static void accept_only(char** words) {
  serve_tcp(on_accept_connection);
}

/* udp */

static void on_datagram(uv_udp_t* socket, ssize_t size, const uv_buf_t* buf,
                        const struct sockaddr* address, unsigned flags) {
  uv_buf_t answer = uv_buf_init(buf->base, size > 0 ? (unsigned) size : 0);
  if (size > 0) /* what the kernel has no room for is lost, as UDP may */
    uv_udp_try_send(socket, &answer, 1, address);
}

static void udp(char** words) {
  uv_udp_t socket;
  struct sockaddr_in address = loopback("0");
  int size = sizeof address;
  CHECK(uv_udp_init(uv_default_loop(), &socket));
  CHECK(uv_udp_bind(&socket, (struct sockaddr*) &address, 0));
  CHECK(uv_udp_recv_start(&socket, on_alloc, on_datagram));
  CHECK(uv_udp_getsockname(&socket, (struct sockaddr*) &address, &size));
  serve(&address);
}

/* timers */

static long fired;

static void on_timer(uv_timer_t* timer) {
  fired++;
  uv_close((uv_handle_t*) timer, on_close_free);
}

/* In bytes: the pages that only this process has. */
static double private_memory(void) {
  FILE* file = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  long kib, total = 0;
  if (file == NULL)
    die("smaps_rollup");
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "Private_%*[A-Za-z]: %ld", &kib) == 1)
      total += kib;
  fclose(file);
  return total * 1024.0;
}

static void timers(char** words) {
  int cancel = strcmp(words[0], "cancel") == 0;
  int pending = strcmp(words[0], "pending") == 0;
  long i, count = atol(words[1]);
  double spread_ms = atof(words[2]) * 1000 + (pending ? 3600e3 : 0);
  uv_timer_t** timers = allocate(count * sizeof *timers);
  double before, began;
  memset(timers, 1, count * sizeof *timers); /* the application's, not counted */
  before = private_memory();
  began = cpu_seconds();
  for (i = 0; i < count; i++) {
    timers[i] = allocate(sizeof *timers[i]);
    CHECK(uv_timer_init(uv_default_loop(), timers[i]));
    CHECK(uv_timer_start(timers[i], on_timer, spread_ms * i / count, 0));
  }
  if (pending) {
    printf("{\"bytes\": %.2f}\n", (private_memory() - before) / count);
    return;
  }
  for (i = 0; cancel && i < count; i++)
    uv_close((uv_handle_t*) timers[i], on_close_free);
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  if (fired != (cancel ? 0 : count))
    abort();
  printf("{\"cpu_seconds\": %.9f}\n", (cpu_seconds() - began) / count);
}

/* What is counted for some seconds: connect and wakeups */

static double began, began_cpu, deadline;
static long counted;

static void start_counting(const char* seconds) {
  began = now();
  began_cpu = cpu_seconds();
  deadline = began + atof(seconds);
}

/* Returns whether to go on. */
static int count_one(void) {
  counted++;
  return now() < deadline;
}

static void print_counted(void) {
  printf("{\"per_second\": %.1f, \"cpu_seconds\": %.9f}\n",
         counted / (now() - began), (cpu_seconds() - began_cpu) / counted);
}

/* connect */

typedef struct {
  uv_tcp_t tcp;
  uv_connect_t request;
} client_t;

static struct sockaddr_in server_address;

static void start_connection(void);

static void on_client_close(uv_handle_t* handle) {
  free(handle);
  if (count_one())
    start_connection();
}

static void on_client_read(uv_stream_t* stream, ssize_t size,
                           const uv_buf_t* buf) {
  if (size != UV_EOF)
    check(size < 0 ? (int) size : UV_EINVAL, "read");
  uv_close((uv_handle_t*) stream, on_client_close);
}

static void on_connect(uv_connect_t* request, int status) {
  check(status, "connect");
  CHECK(uv_read_start(request->handle, on_alloc, on_client_read));
}

static void start_connection(void) {
  client_t* client = allocate(sizeof *client);
  CHECK(uv_tcp_init(uv_default_loop(), &client->tcp));
  CHECK(uv_tcp_connect(&client->request, &client->tcp,
                       (struct sockaddr*) &server_address, on_connect));
}

static void connect_only(char** words) {
  int i;
  server_address = loopback(words[0]);
  start_counting(words[2]);
  for (i = 0; i < atoi(words[1]); i++)
    start_connection();
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  print_counted();
}

/* wakeups */

static uv_async_t notifier;
static uv_sem_t answered;
static int done;

static void on_wakeup(uv_async_t* handle) {
  if (!count_one()) {
    done = 1;
    uv_close((uv_handle_t*) handle, NULL);
  }
  uv_sem_post(&answered);
}

static void notify(void* argument) {
  while (!done) { /* the semaphore orders this after on_wakeup */
    uv_async_send(&notifier);
    uv_sem_wait(&answered);
  }
}

static void wakeups(char** words) {
  uv_thread_t thread;
  start_counting(words[0]);
  CHECK(uv_sem_init(&answered, 0));
  CHECK(uv_async_init(uv_default_loop(), &notifier, on_wakeup));
  CHECK(uv_thread_create(&thread, notify, NULL));
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  uv_thread_join(&thread);
  print_counted();
}

static const struct {
  const char* name;
  int words;
  void (*run)(char** words);
} kinds[] = {
    {"http", 1, http},     {"echo", 0, echo},       {"accept", 0, accept_only},
    {"udp", 0, udp},       {"timers", 3, timers},   {"connect", 3, connect_only},
    {"wakeups", 1, wakeups},
};

int main(int argc, char** argv) {
  size_t i;
  for (i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (argc == 2 + kinds[i].words && strcmp(argv[1], kinds[i].name) == 0) {
      kinds[i].run(argv + 2);
      return 0;
    }
  return 3;
}
