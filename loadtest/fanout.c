// fanout: SSE subscribers and HTTP publishers in one process; counts every delivery and times it end to end.
//
//   cc -O2 -pthread -o fanout fanout.c
//   ./fanout --port 8000 --path '/events?channel=bench' --pub-path /publish/bench --pids PID
//
// Publishers are threads with one keep-alive connection each; subscribers are sockets in the epoll of a reader thread.
// Every payload begins with "@T<ns>@N<seq>@", which is found again in whatever framing the server uses. Both ends
// share one clock, so now minus T is the latency of that delivery.
//
// Rules:
// 1. The tool shares its cores with the server under test: nothing but read() and one scan of the bytes stands in the
//    reader's loop, and a reader's histograms are its own until it has ended.
// 2. Everything ends: every wait knows the deadline, and what has not arrived by then is reported as lost.
// 3. Loopback only: a load generator must not be pointed at somebody else's machine by mistake.
//
// Exit status: 0 all was delivered, 1 deliveries were lost or requests failed, 2 the command line is wrong.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
enum {
  CLIENTS_MAX = 100000, CHANNELS_MAX = 16384, READERS_MAX = 16, PUBLISHERS_MAX = 64, PIDS_MAX = 64,
  HEAD_MAX = 8192, BODY_MAX = 64 << 20, REPLY_MAX = 1 << 20, READ_SIZE = 256 << 10,
  STAMP_MAX = 64,         // "@T" 19 digits "@N" 19 digits "@", rounded up
  CONNECT_BURST = 200,    // connections opened between two looks at the open ones
  CONNECT_WINDOW = 1000,  // opened but not yet answered, so that the server's accept queue does not overflow
  STALLED_RECEIVE_BUFFER = 4096,
};

static struct {
  const char *host, *path, *storm_path, *pub_path, *body, *type, *tokens;
  long port, pub_port, clients, count, rate, size, channels, pubs, batch, spread, readers, src_ips, settle, deadline,
    stalled, storm, storm_expect;
  char headers[4096];
  char **token;  // of the file `tokens`, one a line
  int token_count;
  int pids[PIDS_MAX], pid_count;
} opt = {
  .host = "127.0.0.1", .path = "/events?channel=bench", .pub_path = "/publish/bench", .body = "%s",
  .type = "text/plain", .port = 8000, .clients = 100, .count = 1000, .size = 100, .channels = 1, .pubs = 1,
  .batch = 1, .readers = 1, .src_ips = 1, .settle = 2, .deadline = 120,
};

// ---------------------------------------------------------------- time

static int64_t began_ns, deadline_ns;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

static bool past_deadline(void) { return now_ns() > deadline_ns; }

static void sleep_until(int64_t when) {
  int64_t left = (when < deadline_ns ? when : deadline_ns) - now_ns();
  if (left > 0)
    nanosleep(&(struct timespec){left / SECOND, left % SECOND}, NULL);
}

static void sleep_ms(int ms) { sleep_until(now_ns() + ms * 1000000LL); }

// ---------------------------------------------------------------- latencies

// Log-linear: 64 buckets to each power of two of nanoseconds, so a quantile is at most 1.6 % too low.
enum { STEP_BITS = 6, STEPS = 1 << STEP_BITS, BUCKETS = 64 * STEPS };

struct histogram { long total, bucket[BUCKETS]; };

static void histogram_add(struct histogram *h, int64_t ns) {
  int exponent = 63 - __builtin_clzll(ns | STEPS);
  h->bucket[exponent * STEPS + (ns >> (exponent - STEP_BITS)) % STEPS]++;
  h->total++;
}

static void histogram_merge(struct histogram *into, const struct histogram *from) {
  for (int i = 0; i < BUCKETS; i++)
    into->bucket[i] += from->bucket[i];
  into->total += from->total;
}

static double quantile_ms(const struct histogram *h, double q) {
  long seen = 0;
  for (int i = 0; i < BUCKETS; i++) {
    seen += h->bucket[i];
    if (seen > 0 && seen >= q * h->total)
      return (double)(1LL << i / STEPS) * (1 + i % STEPS / (double)STEPS) / 1e6;
  }
  return 0;
}

// ---------------------------------------------------------------- the server's processes

static double stat_cpu_s(const char *line) {
  unsigned long user = 0, kernel = 0;
  const char *fields = strrchr(line, ')');  // the name before it may hold spaces and parentheses
  if (fields)
    sscanf(fields + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
  return (double)(user + kernel) / sysconf(_SC_CLK_TCK);
}

// Of the whole machine, all cores together, by anybody.
static double idle_s(void) {
  unsigned long idle = 0, waiting = 0;
  FILE *file = fopen("/proc/stat", "r");
  if (file && fscanf(file, "cpu %*u %*u %*u %lu %lu", &idle, &waiting) != 2)
    idle = waiting = 0;
  if (file)
    fclose(file);
  return (double)(idle + waiting) / sysconf(_SC_CLK_TCK);
}

// PSS, not RSS: workers forked from one process share pages, which must not be counted once for each.
static double pss_kb(const char *line) {
  double kb = 0;
  sscanf(line, "Pss: %lf", &kb);
  return kb;
}

static double value_of_pid(int pid, const char *file_name, double (*value_of)(const char *line)) {
  double sum = 0;
  char path[64], line[1024];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, file_name);
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    sum += value_of(line);
  if (file)
    fclose(file);
  return sum;
}

static double sum_over_pids(const char *file_name, double (*value_of)(const char *line)) {
  double sum = 0;
  for (int i = 0; i < opt.pid_count; i++)
    sum += value_of_pid(opt.pids[i], file_name, value_of);
  return sum;
}

static double own_cpu_s(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double cpu_s_of(int pid) { return value_of_pid(pid, "stat", stat_cpu_s); }
static double server_cpu_s(void) { return sum_over_pids("stat", stat_cpu_s); }
static double server_memory_kb(void) { return sum_over_pids("smaps_rollup", pss_kb); }

// ---------------------------------------------------------------- requests

// Writes `template` to `out`, with %s replaced by the payload and %d by the channel; returns the length.
static size_t expand(char *out, const char *template, const char *payload, size_t length, int channel) {
  char *end = out;
  for (const char *t = template; *t; t++) {
    if (t[0] == '%' && t[1] == 's')
      end = mempcpy(end, payload, length), t++;
    else if (t[0] == '%' && t[1] == 'd')
      end += sprintf(end, "%d", channel), t++;
    else
      *end++ = *t;
  }
  *end = 0;
  return end - out;
}

// Connects as the index-th connection, or returns -1. No call on the socket outlasts the deadline.
// `receive_buffer`, when not 0, is set before connecting: the window scale is settled in the handshake.
static int dial(int index, long port, int receive_buffer) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  int64_t left = deadline_ns - now_ns();
  struct timeval timeout = {left > 0 ? left / SECOND : 0, 1};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (receive_buffer)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  if (opt.src_ips > 1) {  // one address has some 28,000 ports to connect from
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 256 + index % opt.src_ips);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    bind(fd, (struct sockaddr *)&source, sizeof source);
  }
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, opt.host, &server.sin_addr);
  if (connect(fd, (struct sockaddr *)&server, sizeof server) == 0)
    return fd;
  int reason = errno;
  close(fd);
  errno = reason;
  return -1;
}

// Connects and asks for the stream of the index-th subscriber; returns the socket or -1.
static int open_stream(int index, int receive_buffer) {
  char path[2048], request[HEAD_MAX];
  bool stormy = index >= opt.clients && index < opt.clients + opt.storm && opt.storm_path;
  expand(path, stormy ? opt.storm_path : opt.path, "", 0, index % opt.channels);
  const char *token = opt.token_count ? opt.token[index % opt.token_count] : "";
  int length = snprintf(
    request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%ld\r\nAccept: text/event-stream\r\n%s%s%s%s\r\n",
    path, opt.host, opt.port, opt.headers, *token ? "Authorization: Bearer " : "", token, *token ? "\r\n" : "");
  int fd = dial(index, opt.port, receive_buffer);
  if (fd >= 0)
    send(fd, request, length, MSG_NOSIGNAL);  // whole or not at all: the send buffer is empty; a broken one ends in read()
  return fd;
}

static bool is_success(const char *reply) { return !strncmp(reply, "HTTP/1.", 7) && reply[9] == '2'; }

// Counts a failure and tells the first: one sentence helps, a thousand do not.
static void __attribute__((format(printf, 2, 3))) fail(_Atomic long *errors, const char *format, ...) {
  static atomic_flag told = ATOMIC_FLAG_INIT;
  char sentence[200];
  va_list values;
  va_start(values, format);
  vsnprintf(sentence, sizeof sentence, format, values);
  va_end(values);
  if (!atomic_flag_test_and_set(&told))
    fprintf(stderr, "fanout: %.*s\n", (int)strcspn(sentence, "\r\n"), sentence);
  *errors += 1;
}

// ---------------------------------------------------------------- subscribers

// The periods of a storm, by when an event was sent; without a storm all is BEFORE.
enum { BEFORE, DURING, AFTER, PERIODS };
static _Atomic int64_t storm_began_ns = INT64_MAX, storm_ended_ns = INT64_MAX;
static _Atomic bool stop, enough;

struct tally {
  _Atomic long connected, closed, errors, delivered, replayed, disordered;
  _Atomic int64_t last_delivery_ns;
};

struct client {
  int fd, channel, held;
  bool answered;
  long delivered, replayed;
  int64_t last_replayed;
  char hold[STAMP_MAX];  // the beginning of a stamp that the last read cut off
};

struct reader {
  pthread_t thread;
  struct client *clients;
  int first, count;  // the indices of its clients
  int window;        // how many may be opened but not yet answered
  struct tally *tally;
  struct histogram latency[PERIODS];
};

// Reads "@<tag><digits>" at p; returns what follows, NULL when the bytes end first, p when it is something else.
static char *read_number(char *p, char *end, char tag, int64_t *value) {
  if (end - p < 2)
    return NULL;
  if (p[0] != '@' || p[1] != tag)
    return p;
  char *digits = p + 2;
  *value = 0;
  for (p = digits; p < end && *p >= '0' && *p <= '9' && p - digits < 19; p++)
    *value = *value * 10 + (*p - '0');
  return p < end ? p : NULL;
}

// Counts the stamps between p and end; returns where an unfinished one begins, or end.
static char *count_stamps(struct reader *r, struct client *c, char *p, char *end, int64_t now) {
  int64_t began = storm_began_ns, ended = storm_ended_ns, sent, sequence;
  while ((p = memchr(p, '@', end - p))) {
    char *middle = read_number(p, end, 'T', &sent);
    char *after = middle ? read_number(middle, end, 'N', &sequence) : NULL;
    if (!after)
      return p;
    bool is_stamp = middle > p && after > middle && *after == '@';
    if (is_stamp && sent >= began_ns) {
      histogram_add(&r->latency[sent < began ? BEFORE : sent <= ended ? DURING : AFTER], now - sent);
      c->delivered++;
    } else if (is_stamp) {  // of before this run, replayed by the server
      r->tally->disordered += c->replayed && sequence != c->last_replayed + 1;
      r->tally->replayed += 1;
      c->last_replayed = sequence;
      c->replayed++;
    }
    p = after + 1;
  }
  return end;
}

static void give_up(struct reader *r, struct client *c, const char *reason) {
  close(c->fd);  // which also takes it out of the epoll
  if (c->answered)
    r->tally->closed += 1;
  else
    fail(&r->tally->errors, "a stream was not admitted: %s", reason);
}

static void receive(struct reader *r, struct client *c, char *buffer) {
  memcpy(buffer, c->hold, c->held);
  ssize_t got = read(c->fd, buffer + c->held, READ_SIZE);
  if (got < 0 && errno == EAGAIN)
    return;
  char *end = buffer + c->held + (got > 0 ? got : 0);
  *end = 0;
  if (got <= 0 || (!c->answered && !is_success(buffer))) {
    give_up(r, c, got > 0 ? buffer : "the server closed it");
    return;
  }
  if (!c->answered)
    r->tally->connected += 1;
  c->answered = true;
  int64_t now = now_ns();
  long before = c->delivered;
  char *rest = count_stamps(r, c, buffer, end, now);
  c->held = end - rest;
  memcpy(c->hold, rest, c->held);
  if (c->delivered > before) {
    r->tally->delivered += c->delivered - before;
    r->tally->last_delivery_ns = now;
  }
}

// Opens a burst of the reader's clients, from the made-th on; returns how many are made now.
static int open_burst(struct reader *r, int epoll, int made) {
  struct tally *t = r->tally;
  for (int i = 0; i < CONNECT_BURST && made < r->count; i++, made++) {
    if (made - (t->connected + t->errors) / opt.readers >= r->window)
      break;
    struct client *c = &r->clients[made];
    c->channel = (r->first + made) % opt.channels;
    c->fd = open_stream(r->first + made, 0);
    if (c->fd < 0) {
      fail(&t->errors, "connecting to %s:%ld: %s", opt.host, opt.port, strerror(errno));
      continue;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  }
  return made;
}

static void *read_streams(void *argument) {
  struct reader *r = argument;
  char *buffer = malloc(STAMP_MAX + READ_SIZE + 1);
  struct epoll_event ready[512];
  int epoll = epoll_create1(0), made = 0;
  while (!stop) {
    made = open_burst(r, epoll, made);
    int n = epoll_wait(epoll, ready, 512, made < r->count ? 1 : 50);
    for (int i = 0; i < n; i++)
      receive(r, ready[i].data.ptr, buffer);
  }
  return NULL;
}

static void start_reader(struct reader *r, struct tally *tally, int first, int end, int window) {
  *r = (struct reader){.first = first, .count = end - first, .window = window, .tally = tally};
  r->clients = calloc(r->count + 1, sizeof *r->clients);
  pthread_create(&r->thread, NULL, read_streams, r);
}

static void await_connected(const struct tally *t, long count) {
  while (t->connected + t->errors < count && !past_deadline())
    sleep_ms(1);
}

// Opens a subscriber that never reads. Looking at the answer without taking it proves that it was admitted.
static void open_stalled(int index, _Atomic long *errors) {
  char reply[16] = "";
  int fd = open_stream(index, STALLED_RECEIVE_BUFFER);
  if (fd < 0 || recv(fd, reply, sizeof reply - 1, MSG_PEEK) <= 0 || !is_success(reply))
    fail(errors, "a stalled reader was not admitted");
}

// ---------------------------------------------------------------- publishers

static _Atomic long attempted, publish_errors, accepted[CHANNELS_MAX];

struct publisher {
  pthread_t thread;
  int id, fd;         // fd is -1 while it has no connection
  long first, count;  // the sequence numbers that it sends
  char *request, *reply;
};

// With --spread the events of a batch go to one channel after another, else all to one.
static int channel_of(long sequence) { return (opt.spread ? sequence : sequence / opt.batch) % opt.channels; }

static size_t body_max(void) { return opt.batch * (STAMP_MAX + opt.size + 2 * strlen(opt.body) + 2); }

// Writes the request for `events` events from `sequence` on; returns its beginning. The body is written first, at a
// fixed place, and the head, which tells its length, right in front of it.
static char *write_request(struct publisher *p, long sequence, int events, size_t *length) {
  char head[HEAD_MAX], path[2048], payload[STAMP_MAX + opt.size], *body = p->request + HEAD_MAX, *end = body;
  memset(payload, 'x', sizeof payload);
  for (int i = 0; i < events; i++) {
    int stamp = sprintf(payload, "@T%lld@N%ld@", (long long)now_ns(), sequence + i);
    payload[stamp] = 'x';
    end += expand(end, opt.body, payload, stamp > opt.size ? stamp : opt.size, channel_of(sequence + i));
    if (opt.batch > 1)
      *end++ = '\n';
  }
  expand(path, opt.pub_path, "", 0, channel_of(sequence));
  int head_length = snprintf(
    head, sizeof head, "POST %s HTTP/1.1\r\nHost: %s:%ld\r\nContent-Type: %s\r\nContent-Length: %td\r\n%s\r\n",
    path, opt.host, opt.pub_port, opt.type, end - body, opt.headers);
  *length = head_length + (end - body);
  return memcpy(body - head_length, head, head_length);
}

static bool is_complete(const char *reply, size_t length) {
  const char *body = strstr(reply, "\r\n\r\n");
  if (!body)
    return false;
  body += 4;
  const char *field = strcasestr(reply, "\r\ncontent-length:");
  if (field && field < body)
    return reply + length - body >= atol(field + 17);
  field = strcasestr(reply, "\r\ntransfer-encoding: chunked");
  if (field && field < body)  // one request at a time, so the last chunk is the last that comes
    return !strncmp(body, "0\r\n\r\n", 5) || !strcmp(reply + length - 7, "\r\n0\r\n\r\n");
  return true;
}

// Sends the request and reads its reply; false when the connection did not survive it.
static bool exchange(int fd, const char *request, size_t length, char *reply) {
  for (size_t sent = 0; sent < length;) {
    ssize_t n = send(fd, request + sent, length - sent, MSG_NOSIGNAL);
    if (n <= 0)
      return false;
    sent += n;
  }
  size_t have = 0;
  do {
    ssize_t n = read(fd, reply + have, REPLY_MAX - 1 - have);
    if (n <= 0)
      return false;
    have += n;
    reply[have] = 0;
  } while (!is_complete(reply, have));
  return true;
}

// Counts the events of an answered request: all as accepted, but for a batch those whose line of the reply has a status.
static void count_accepted(const char *reply, long sequence, int events) {
  const char *line = strstr(reply, "\r\n\r\n");
  line = line ? line + 4 : "";
  for (int i = 0; i < events; i++) {
    const char *end = strchrnul(line, '\n');
    if (opt.batch > 1 && memmem(line, end - line, "\"status\"", 8))
      fail(&publish_errors, "an event was answered with %s", line);
    else
      accepted[channel_of(sequence + i)] += 1;
    line = *end ? end + 1 : end;
  }
}

static void publish_request(struct publisher *p, long sequence, int events) {
  if (p->fd < 0 && (p->fd = dial(0, opt.pub_port, 0)) < 0) {
    fail(&publish_errors, "connecting to publish: %s", strerror(errno));
    return;
  }
  size_t length;
  char *request = write_request(p, sequence, events, &length);
  if (!exchange(p->fd, request, length, p->reply)) {
    fail(&publish_errors, "a publisher's connection ended before the reply");
    close(p->fd);
    p->fd = -1;
  } else if (is_success(p->reply))
    count_accepted(p->reply, sequence, events);
  else
    fail(&publish_errors, "a publish was answered with %s", p->reply);
}

static void *publish(void *argument) {
  struct publisher *p = argument;
  p->request = malloc(HEAD_MAX + body_max());
  p->reply = malloc(REPLY_MAX);
  int64_t start = now_ns();
  for (long done = 0; done < p->count && !enough;) {
    long events = p->count - done < opt.batch ? p->count - done : opt.batch;
    if (opt.rate)  // publishers take turns, so that together they are evenly spaced
      sleep_until(start + (int64_t)((double)(done * opt.pubs + p->id * opt.batch) / opt.rate * SECOND));
    if (!past_deadline() && !enough)
      publish_request(p, p->first + done, events);
    done += events;
    attempted += events;
  }
  return NULL;
}

static void start_publishers(struct publisher *publishers) {
  for (long i = 0; i < opt.pubs; i++) {
    long first = opt.count * i / opt.pubs, end = opt.count * (i + 1) / opt.pubs;
    publishers[i] = (struct publisher){.id = i, .fd = -1, .first = first, .count = end - first};
    pthread_create(&publishers[i].thread, NULL, publish, &publishers[i]);
  }
}

// ---------------------------------------------------------------- phases

static struct reader live[READERS_MAX], storm;
static struct tally live_tally, storm_tally;
static int64_t storm_connected_ns;

static void connect_phase(void) {
  double memory = server_memory_kb(), cpu = server_cpu_s();
  int64_t start = now_ns();
  for (long i = 0; i < opt.readers; i++)
    start_reader(&live[i], &live_tally, opt.clients * i / opt.readers, opt.clients * (i + 1) / opt.readers,
                 CONNECT_WINDOW);
  await_connected(&live_tally, opt.clients);
  double seconds = (now_ns() - start) / 1e9;
  sleep_ms(500);  // what the server puts off until after the answer is part of the price
  double idle = server_memory_kb(), connected = live_tally.connected;
  printf("connected=%.0f errors=%ld connect_s=%.2f connects_per_s=%.0f connect_cpu_ms=%.3f rss_mb_idle=%.1f "
         "kb_per_conn=%.2f\n", connected, live_tally.errors, seconds, connected / seconds,
         connected ? 1000 * (server_cpu_s() - cpu) / connected : 0, idle / 1024, (idle - memory) / opt.clients);
  fflush(stdout);
}

// Beside the publishers, after half of the events: the storm's subscribers connect with nothing to hold them back, in
// a thread of their own, so that the live reader is not late on their account. The storm is over when all of them are
// connected and, with --storm-expect, have got what they missed.
static void storm_phase(void) {
  while (attempted < opt.count / 2 && !past_deadline())
    sleep_ms(1);
  storm_began_ns = now_ns();
  start_reader(&storm, &storm_tally, opt.clients, opt.clients + opt.storm, INT32_MAX);
  await_connected(&storm_tally, opt.storm);
  storm_connected_ns = now_ns();
  while (storm_tally.replayed < opt.storm_expect * opt.storm && !past_deadline())
    sleep_ms(1);
  storm_ended_ns = now_ns();
}

// A storm that others make: they say by SIGUSR1 when it begins and, by another one, when it has ended, and by SIGUSR2
// when nothing more is to be published.
static void *heed_signals(void *signals) {
  for (int number; !sigwait(signals, &number);)
    if (number == SIGUSR2)
      enough = true;
    else if (storm_began_ns == INT64_MAX)
      storm_began_ns = now_ns();
    else
      storm_ended_ns = now_ns();
  return NULL;
}

// All threads that are started later leave these signals to that one.
static void await_signals(void) {
  static sigset_t signals;
  pthread_t thread;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  sigaddset(&signals, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &signals, NULL);
  pthread_create(&thread, NULL, heed_signals, &signals);
}

static void report_storm(void) {
  double seconds = (storm_connected_ns - storm_began_ns) / 1e9;
  printf("storm_connected=%ld storm_errors=%ld storm_closed=%ld storm_s=%.2f storm_connects_per_s=%.0f\n",
         storm_tally.connected, storm_tally.errors, storm_tally.closed, seconds, storm_tally.connected / seconds);
}

static void report_periods(const struct histogram *before, const struct histogram *during) {
  printf("before_deliveries=%ld before_p50_ms=%.2f before_p99_ms=%.2f before_max_ms=%.2f "
         "during_deliveries=%ld during_p50_ms=%.2f during_p99_ms=%.2f during_max_ms=%.2f\n",
         before->total, quantile_ms(before, 0.5), quantile_ms(before, 0.99), quantile_ms(before, 1),
         during->total, quantile_ms(during, 0.5), quantile_ms(during, 0.99), quantile_ms(during, 1));
}

// What those of the storm were to replay; returns how much of it is missing, for each by itself.
static long report_replay(void) {
  long lost = 0, surplus = 0;
  pthread_join(storm.thread, NULL);
  for (int i = 0; i < storm.count; i++) {
    long missing = opt.storm_expect - storm.clients[i].replayed;
    *(missing > 0 ? &lost : &surplus) += labs(missing);
  }
  double seconds = (storm_ended_ns - storm_began_ns) / 1e9;
  printf("replayed=%ld replay_s=%.2f replayed_per_s=%.0f replay_lost=%ld replay_surplus=%ld replay_disordered=%ld\n",
         storm_tally.replayed, seconds, storm_tally.replayed / seconds, lost, surplus, storm_tally.disordered);
  return lost + surplus + storm_tally.disordered;
}

// A subscriber that could not connect lost everything, so it counts.
static long expected_deliveries(void) {
  long sum = 0;
  for (long i = 0; i < opt.clients; i++)
    sum += accepted[i % opt.channels];
  return sum;
}

// Waits until all has arrived, or nothing has for `settle` seconds; returns when the last delivery came.
static int64_t await_deliveries(long expected) {
  int64_t quiet_since = now_ns();
  while (live_tally.delivered < expected && now_ns() - quiet_since < opt.settle * SECOND && !past_deadline()) {
    if (live_tally.last_delivery_ns > quiet_since)
      quiet_since = live_tally.last_delivery_ns;
    sleep_ms(1);
  }
  return live_tally.last_delivery_ns;
}

// Ends the live readers and gathers their latencies and what their clients missed or got too often: for each client
// by itself, so that a duplicate here does not hide a loss there.
static void gather(struct histogram *latency, long *lost, long *surplus) {
  stop = true;
  for (long i = 0; i < opt.readers; i++) {
    pthread_join(live[i].thread, NULL);
    for (int period = 0; period < PERIODS; period++)
      histogram_merge(&latency[period], &live[i].latency[period]);
    for (int k = 0; k < live[i].count; k++) {
      long missing = accepted[(live[i].first + k) % opt.channels] - live[i].clients[k].delivered;
      *(missing > 0 ? lost : surplus) += labs(missing);
    }
  }
}

// Publishes, awaits the deliveries and reports; returns how many were lost.
static long publish_phase(void) {
  static struct publisher publishers[PUBLISHERS_MAX];
  static struct histogram latency[PERIODS], whole;
  for (long i = 0; i < opt.stalled; i++)
    open_stalled(opt.clients + opt.storm + i, &live_tally.errors);
  double cpu = server_cpu_s(), load_cpu = own_cpu_s(), idle = idle_s(), cpu_of[PIDS_MAX];
  for (int i = 0; i < opt.pid_count; i++)
    cpu_of[i] = cpu_s_of(opt.pids[i]);
  int64_t start = now_ns();
  start_publishers(publishers);
  if (opt.storm)
    storm_phase();
  for (long i = 0; i < opt.pubs; i++)
    pthread_join(publishers[i].thread, NULL);
  double publish_s = (now_ns() - start) / 1e9;
  long expected = expected_deliveries(), published = 0, lost = 0, surplus = 0;
  for (long channel = 0; channel < opt.channels; channel++)
    published += accepted[channel];
  int64_t last = await_deliveries(expected);
  double duration = last > start ? (last - start) / 1e9 : publish_s, memory = server_memory_kb();
  cpu = server_cpu_s() - cpu;
  load_cpu = own_cpu_s() - load_cpu;
  idle = idle_s() - idle;
  for (int i = 0; i < opt.pid_count; i++)
    cpu_of[i] = cpu_s_of(opt.pids[i]) - cpu_of[i];
  gather(latency, &lost, &surplus);
  for (int period = 0; period < PERIODS; period++)
    histogram_merge(&whole, &latency[period]);
  printf("published=%ld pub_per_s=%.0f delivered=%ld expected=%ld lost=%ld surplus=%ld duration_s=%.3f "
         "deliveries_per_s=%.0f p50_ms=%.2f p99_ms=%.2f p999_ms=%.2f max_ms=%.2f server_cpu_s=%.2f "
         "cpu_us_per_delivery=%.2f rss_mb=%.1f closed=%ld errors=%ld load_cpu_s=%.2f idle_s=%.2f",
         published, published / publish_s, whole.total, expected, lost, surplus, duration, whole.total / duration,
         quantile_ms(&whole, 0.5), quantile_ms(&whole, 0.99), quantile_ms(&whole, 0.999), quantile_ms(&whole, 1), cpu,
         whole.total ? 1e6 * cpu / whole.total : 0, memory / 1024, live_tally.closed,
         live_tally.errors + publish_errors, load_cpu, idle);
  for (int i = 0; i < opt.pid_count; i++)
    printf(" cpu_s_%d=%.2f", opt.pids[i], cpu_of[i]);
  putchar('\n');
  if (opt.storm)
    report_storm();
  if (storm_began_ns != INT64_MAX)
    report_periods(&latency[BEFORE], &latency[DURING]);
  if (opt.storm_expect)
    lost += report_replay();
  return lost;
}

// ---------------------------------------------------------------- the command line

static const char HELP[] =
  "--host --port --pub-port --path --storm-path --pub-path (%d: channel index) --body (%s: payload, %d) --type --header 'Name: value' --tokens FILE\n"
  "--clients N --count EVENTS --rate EVENTS_PER_S --size BYTES --channels N --pubs THREADS --batch EVENTS --spread 0|1\n"
  "--readers THREADS --src-ips N --pids PID,PID --settle SECONDS --deadline SECONDS --stalled N --storm N --storm-expect EVENTS\n";

static void __attribute__((noreturn, format(printf, 1, 2))) usage(const char *format, ...) {
  va_list values;
  va_start(values, format);
  fputs("fanout: ", stderr);
  vfprintf(stderr, format, values);
  fprintf(stderr, "\n%s", HELP);
  exit(2);
}

static const struct number { const char *name; long *value, least, most; } numbers[] = {
  {"port", &opt.port, 1, 65535},          {"clients", &opt.clients, 1, CLIENTS_MAX},
  {"count", &opt.count, 0, 10000000},     {"rate", &opt.rate, 0, 10000000},
  {"size", &opt.size, 1, 1 << 20},        {"channels", &opt.channels, 1, CHANNELS_MAX},
  {"pubs", &opt.pubs, 1, PUBLISHERS_MAX}, {"batch", &opt.batch, 1, 10000},
  {"readers", &opt.readers, 1, READERS_MAX}, {"src-ips", &opt.src_ips, 1, 250},
  {"settle", &opt.settle, 0, 60},         {"deadline", &opt.deadline, 1, 600},
  {"stalled", &opt.stalled, 0, 10000},    {"storm", &opt.storm, 0, CLIENTS_MAX},
  {"pub-port", &opt.pub_port, 1, 65535},  {"storm-expect", &opt.storm_expect, 0, 1000000},
  {"spread", &opt.spread, 0, 1},
};
static const struct text { const char *name, **value; } texts[] = {
  {"host", &opt.host}, {"path", &opt.path}, {"storm-path", &opt.storm_path}, {"pub-path", &opt.pub_path}, {"body", &opt.body}, {"type", &opt.type},
  {"tokens", &opt.tokens},
};
#define LENGTH(array) (sizeof array / sizeof *array)

static bool set_number(const char *name, const char *argument) {
  for (const struct number *n = numbers; n < numbers + LENGTH(numbers); n++) {
    if (strcmp(n->name, name))
      continue;
    char *end;
    *n->value = strtol(argument, &end, 10);
    if (*end || end == argument || *n->value < n->least || *n->value > n->most)
      usage("--%s takes a number from %ld to %ld, not '%s'", name, n->least, n->most, argument);
    return true;
  }
  return false;
}

static bool set_text(const char *name, char *argument) {
  size_t used = strlen(opt.headers);
  if (strlen(argument) > 1000 || used > 2000)
    usage("--%s is too long", name);
  for (const struct text *t = texts; t < texts + LENGTH(texts); t++)
    if (!strcmp(t->name, name)) {
      *t->value = argument;
      return true;
    }
  if (!strcmp(name, "header"))
    return sprintf(opt.headers + used, "%s\r\n", argument) > 0;
  return false;
}

static bool set_pids(const char *name, char *argument) {
  if (strcmp(name, "pids"))
    return false;
  for (char *pid = strtok(argument, ", \n"); pid && opt.pid_count < PIDS_MAX; pid = strtok(NULL, ", \n"))
    opt.pids[opt.pid_count++] = atoi(pid);
  return true;
}

static void parse_options(int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    if (strncmp(argv[i], "--", 2) || i + 1 == argc)
      usage("'%s' is not an option, or has no value", argv[i]);
    const char *name = argv[i] + 2;
    if (!set_number(name, argv[i + 1]) && !set_text(name, argv[i + 1]) && !set_pids(name, argv[i + 1]))
      usage("there is no --%s", name);
  }
}

static void check_options(void) {
  struct in_addr address;
  if (inet_pton(AF_INET, opt.host, &address) != 1 || ntohl(address.s_addr) >> 24 != 127)
    usage("--host must be a loopback address (127.x.x.x), not '%s'", opt.host);
  const char *payload = strstr(opt.body, "%s");
  if (!payload || strstr(payload + 2, "%s"))
    usage("--body must hold %%s once");
  if (body_max() > BODY_MAX)
    usage("--batch times --size is more than %d bytes", BODY_MAX);
  opt.pub_port = opt.pub_port ? opt.pub_port : opt.port;
  if (opt.storm && !opt.rate)
    usage("--storm needs --rate: it is measured against an even flow");
}

static void read_tokens(void) {
  char line[4096];
  FILE *file = fopen(opt.tokens, "r");
  if (!file)
    usage("--tokens: cannot read '%s'", opt.tokens);
  while (fgets(line, sizeof line, file) && opt.token_count < CLIENTS_MAX) {
    line[strcspn(line, "\r\n")] = 0;
    opt.token = realloc(opt.token, (opt.token_count + 1) * sizeof *opt.token);
    opt.token[opt.token_count++] = strdup(line);
  }
  fclose(file);
}

static void raise_descriptor_limit(void) {
  struct rlimit limit;
  rlim_t needed = opt.clients + opt.storm + opt.stalled + opt.pubs + READERS_MAX + 16;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < needed)
    usage("so many clients need %lu descriptors, and `ulimit -Hn` is %lu", needed, limit.rlim_max);
}

int main(int argc, char **argv) {
  parse_options(argc, argv);
  check_options();
  if (opt.tokens)
    read_tokens();
  raise_descriptor_limit();
  began_ns = now_ns();
  deadline_ns = began_ns + opt.deadline * SECOND;
  await_signals();
  connect_phase();
  long lost = opt.count ? publish_phase() : 0;
  fflush(stdout);
  _exit(lost || live_tally.errors || publish_errors || storm_tally.errors);
}
