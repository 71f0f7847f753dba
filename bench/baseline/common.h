/* What the servers and clients of bench/baseline have in common. */
#ifndef PYASYNC_BENCH_COMMON_H
#define PYASYNC_BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

UNUSED static void die(const char* what) {
  perror(what);
  exit(1);
}

UNUSED static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

/* User and system time of this process, in seconds. */
UNUSED static double cpu_seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

/* A benchmark that is killed must not leave its load running. */
UNUSED static void end_with_parent(void) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
}

UNUSED static int raise_open_files_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
    die("getrlimit");
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return (int) limit.rlim_cur;
}

UNUSED static struct sockaddr_in loopback(const char* port) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  address.sin_port = htons((uint16_t) atoi(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/* Latencies, in seconds. */
static double* latencies;
static size_t latency_count, latency_capacity;

UNUSED static void count_latency(double latency) {
  if (latency_count == latency_capacity) {
    latency_capacity = latency_capacity ? 2 * latency_capacity : 65536;
    latencies = realloc(latencies, latency_capacity * sizeof *latencies);
    if (latencies == NULL)
      die("realloc");
  }
  latencies[latency_count++] = latency;
}

UNUSED static int by_value(const void* left, const void* right) {
  double difference = *(const double*) left - *(const double*) right;
  return (difference > 0) - (difference < 0);
}

UNUSED static double percentile_ms(double percent) {
  if (latency_count == 0)
    return 0;
  return latencies[(size_t) ((latency_count - 1) * percent / 100)] * 1e3;
}

/* The end of a JSON object. */
UNUSED static void print_latencies(void) {
  qsort(latencies, latency_count, sizeof *latencies, by_value);
  printf("\"latency_ms\": {\"min\": %.3f, \"p50\": %.3f, \"p90\": %.3f, "
         "\"p99\": %.3f, \"max\": %.3f}}\n",
         percentile_ms(0), percentile_ms(50), percentile_ms(90),
         percentile_ms(99), percentile_ms(100));
  fflush(stdout);
}

#ifdef UV_VERSION_MAJOR
UNUSED static void check(int status, const char* what) {
  if (status < 0) {
    fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
    exit(1);
  }
}

/* Listen at a free port of 127.0.0.1, and say which. */
UNUSED static void listen_anywhere(uv_tcp_t* listener, uv_connection_cb cb) {
  struct sockaddr_in address = loopback("0");
  int size = sizeof address;
  raise_open_files_limit();
  check(uv_tcp_init(uv_default_loop(), listener), "tcp");
  check(uv_tcp_bind(listener, (struct sockaddr*) &address, 0), "bind");
  check(uv_listen((uv_stream_t*) listener, SOMAXCONN, cb), "listen");
  check(uv_tcp_getsockname(listener, (struct sockaddr*) &address, &size),
        "getsockname");
  printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
}
#endif

#endif
