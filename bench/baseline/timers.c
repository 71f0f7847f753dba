/* Timers of libuv, each with its handle, as C programs use them.
 *
 *   timers fire|cancel|pending COUNT SPREAD_SECONDS
 *
 * fire     start COUNT timers, due over SPREAD_SECONDS, and run the loop until
 *          all have fired: CPU seconds for each
 * cancel   start COUNT timers, then stop and close them all: the same
 * pending  the bytes that COUNT pending timers take, for each
 */
#include <uv.h>

#include "common.h"

static long fired;

static void on_close(uv_handle_t* handle) {
  free(handle);
}

static void on_timer(uv_timer_t* timer) {
  fired++;
  uv_close((uv_handle_t*) timer, on_close);
}

static uv_timer_t* start_timer(uv_loop_t* loop, uint64_t ms) {
  uv_timer_t* timer = malloc(sizeof *timer);
  if (timer == NULL)
    abort();
  check(uv_timer_init(loop, timer), "timer");
  check(uv_timer_start(timer, on_timer, ms, 0), "timer");
  return timer;
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

int main(int argc, char** argv) {
  uv_loop_t* loop = uv_default_loop();
  uv_timer_t** timers;
  double spread_ms, before, began;
  long i, count;
  int cancel, pending;

  if (argc != 4 || (count = atol(argv[2])) < 1) {
    fprintf(stderr, "usage: %s fire|cancel|pending COUNT SPREAD\n", argv[0]);
    return 2;
  }
  cancel = strcmp(argv[1], "cancel") == 0;
  pending = strcmp(argv[1], "pending") == 0;
  spread_ms = atof(argv[3]) * 1000 + (pending ? 3600e3 : 0);
  timers = calloc(count, sizeof *timers);
  if (timers == NULL)
    die("calloc");
  memset(timers, 1, count * sizeof *timers); /* the application's, not counted */
  before = private_memory();
  began = cpu_seconds();
  for (i = 0; i < count; i++)
    timers[i] = start_timer(loop, (uint64_t) (spread_ms * i / count));
  if (pending) {
    printf("{\"bytes\": %.2f}\n", (private_memory() - before) / count);
    return 0;
  }
  for (i = 0; cancel && i < count; i++)
    uv_close((uv_handle_t*) timers[i], on_close);
  uv_run(loop, UV_RUN_DEFAULT);
  if (fired != (cancel ? 0 : count))
    abort();
  printf("{\"cpu_seconds\": %.9f}\n", (cpu_seconds() - began) / count);
  return 0;
}
