/* What peer.c and load.c have in common. */
#ifndef PYASYNC_BENCH_COMMON_H
#define PYASYNC_BENCH_COMMON_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RESPONSE                              \
  "HTTP/1.1 200 OK\r\n"                       \
  "Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"   \
  "Content-Type: text/plain\r\n"              \
  "Content-Length: 9\r\n"                     \
  "\r\n"                                      \
  "omglolwtf"

static void die(const char* what) {
  perror(what);
  exit(1);
}

/* Not calloc: what a connection or a timer takes is measured. */
static inline void* allocate(size_t size) {
  void* memory = malloc(size);
  if (memory == NULL)
    die("malloc");
  return memory;
}

static double seconds_of(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static inline double now(void) {
  return seconds_of(CLOCK_MONOTONIC);
}

static inline struct sockaddr_in loopback(const char* port) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  address.sin_port = htons((uint16_t) atoi(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

#endif
