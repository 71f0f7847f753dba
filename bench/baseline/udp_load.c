/* A client for UDP echo servers.
 *
 *   udp_load PORT IN_FLIGHT SIZE WARM_UP_SECONDS SECONDS
 *
 * Keeps IN_FLIGHT datagrams of SIZE bytes on their way, all of which fit into
 * the kernel's buffers: each answer is followed by another datagram. It prints
 * "begin" after WARM_UP_SECONDS, and SECONDS later one JSON object. It takes and
 * sends many datagrams with one system call, which no server does: it is
 * faster than any.
 */
#define _GNU_SOURCE
#include "common.h"

#define MOST_IN_FLIGHT 64

int main(int argc, char** argv) {
  static struct mmsghdr in[MOST_IN_FLIGHT], out[MOST_IN_FLIGHT];
  static struct iovec buffers[MOST_IN_FLIGHT], answers[MOST_IN_FLIGHT];
  struct sockaddr_in server;
  struct timeval patience = {.tv_usec = 200000};
  double warm_up, seconds, started, began = 0, time;
  long packets = 0, lost = 0;
  int i, fd, in_flight, size, count, measuring = 0, silent = 0;

  if (argc != 6 || (in_flight = atoi(argv[2])) < 1 ||
      in_flight > MOST_IN_FLIGHT || (size = atoi(argv[3])) < 1) {
    fprintf(stderr, "usage: %s PORT IN_FLIGHT SIZE WARM_UP_SECONDS SECONDS\n",
            argv[0]);
    return 2;
  }
  end_with_parent();
  server = loopback(argv[1]);
  warm_up = atof(argv[4]);
  seconds = atof(argv[5]);
  fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr*) &server, sizeof server) != 0)
    die("connect");
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  for (i = 0; i < MOST_IN_FLIGHT; i++) {
    buffers[i] = (struct iovec){calloc(1, size), size};
    answers[i] = (struct iovec){calloc(1, size), size};
    out[i].msg_hdr = (struct msghdr){.msg_iov = &buffers[i], .msg_iovlen = 1};
    in[i].msg_hdr = (struct msghdr){.msg_iov = &answers[i], .msg_iovlen = 1};
  }
  started = now();
  count = in_flight;
  for (;;) {
    time = now();
    if (!measuring && time >= started + warm_up) {
      puts("begin");
      fflush(stdout);
      began = now();
      measuring = 1;
    }
    if (measuring && time >= began + seconds)
      break;
    if (sendmmsg(fd, out, count, 0) < 0)
      die("sendmmsg");
    count = recvmmsg(fd, in, in_flight, MSG_WAITFORONE, NULL);
    if (count < 0 && errno != EAGAIN)
      die("recvmmsg");
    if (count < 0) { /* whatever was on its way is lost */
      if (++silent == 50) {
        fprintf(stderr, "no answer for 10 s\n");
        return 1;
      }
      lost += in_flight;
      count = in_flight;
    } else {
      silent = 0;
      packets += measuring ? count : 0;
    }
  }
  time = now() - began;
  printf("{\"messages\": %ld, \"lost\": %ld, \"seconds\": %.6f, "
         "\"per_second\": %.1f}\n",
         packets, lost, time, packets / time);
  fflush(stdout);
  while (getchar() != EOF) {
  }
  return 0;
}
