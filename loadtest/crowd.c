// crowd: many EventSources that come all at once, or peers that only cost; what each of them got is accounted for.
//
//   cc -O2 -o crowd crowd.c
//   echo go | ./crowd --port 8000 --kind source --clients 5000 --path '/events?channel=c%d' --channels 100
//
// Kinds: `source` is an EventSource; it waits as it was told and comes back with its position, until it is told not to
// or, as browsers have it, answered with anything but 200. It keeps one cookie, the last one that it was given.
// `stalled` is one that never reads what comes after `connected` until it is told to. `head`, `body` and `silent` send
// the head of a request, its body, or nothing at all, a byte now and then; when their connection ends they open another.
//
// It does what it is told on stdin, a command a line, and ends with it:
//
//   go       open all, as fast as the machine can
//   close N  close N streams that are open, and do not come back
//   read     have the stalled ones read on
//   finish   print a line `client ...` for each source, and end
//
// and says ten times a second, and for the last time at the end, in a line of key=value, what has happened so far.
// With --trace FILE it writes there all that happens to sources, a line each: the time in microseconds since 1970, the
// client's number, and
//
//   open                     it opens a connection
//   connected POSITION, event POSITION DATA, gap JSON, dropped COUNT, reconnect JSON
//                            what it is told
//   ended STATUS MS          the connection ended, after an answer with that status (0: with none); it waits for so long
//
// Rules:
// 1. It shares its cores with the server: one thread, one epoll, and nothing kept of an event but its position, unless
//    there is a trace.
// 2. Everything ends: with stdin, and at the deadline.
// 3. Loopback only.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
  CLIENTS_MAX = 20000, REQUEST_MAX = 2048, READ_SIZE = 64 << 10,
  LINE_MAX = 160,             // of a line no more is looked at
  COOKIE_MAX = 96,
  TRACE_BUFFER = 1 << 20,
  BURST = 100,                // connections opened between two looks at the open ones
  TICK_MS = 10,               // between two looks at the clients whose time may have come
  TICKS_PER_STATUS = 10,
  RETRY_MS = 3000,            // of an EventSource that was told nothing: Chromium's
  STALLED_RECEIVE_BUFFER = 4096,
  SLOW_BODY_BYTES = 1000,
  SEQUENCE_BITS = 20,         // of a position; milliseconds since 1970 are above
};

static struct {
  const char *kind, *path, *trace;
  long port, clients, channels, network, addresses, drip_ms, deadline;
} opt = {
  .kind = "source", .path = "/events?channel=bench", .port = 8000, .clients = 100, .channels = 1, .network = 10,
  .addresses = 50, .drip_ms = 1000, .deadline = 300,
};

enum state { WAITING, CONNECTING, ASKED, STREAMING, DONE };
enum part { STATUS, HEADERS, BODY };
enum chunk { SIZE, IN_CHUNK, AFTER };

struct client {
  int fd, channel, status, held, retry_ms;
  enum state state;
  enum part part;
  int64_t due_ns, opened_ns;  // when it comes (back), or sends its next byte; when it last did the former
  enum chunk chunk;
  long left;                  // bytes of the chunk, or of a body that has a length
  bool chunked, is_told, muted, hung_up, was_admitted;
  long received, disordered, dropped, gaps, sent_bytes;
  int64_t start, last, resume;  // positions: of the first `connected`, of the last event, to come back with
  // The block that is being read.
  int64_t id;
  bool has_data;
  char event[16];
  long count;
  char line[LINE_MAX];
  char data[LINE_MAX];        // for the trace
  char cookie[COOKIE_MAX];    // as it is sent: a name and a value
};

static struct tally {
  // Openings by their outcome.
  long opened, admitted, turned_away, unanswered, refused_for_good, not_connected;
  // Admitted ones that come back after their stream was ended; streams that were closed here, and now open.
  long resumed, ended, closed, open;
  long timed_out, cut, received;
  int64_t last_admitted_ns, longest_ns;
} t;

static struct client *clients;
static int epoll;
static bool going, told_why;
static int64_t went_ns;
static FILE *trace;           // NULL: there is none
static int64_t epoch_ns;      // of 1970 on the clock of `now_ns`, negated

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * SECOND + now.tv_nsec;
}

static bool is_kind(const char *kind) { return !strcmp(opt.kind, kind); }

static bool is_source(void) { return is_kind("source") || is_kind("stalled"); }

// ---------------------------------------------------------------- the trace

static void start_trace(void) {
  if (!opt.trace)
    return;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  epoch_ns = now.tv_sec * SECOND + now.tv_nsec - now_ns();
  if (!(trace = fopen(opt.trace, "w"))) {
    perror("crowd: --trace");
    exit(2);
  }
  setvbuf(trace, NULL, _IOFBF, TRACE_BUFFER);
}

// The line is yet to be ended.
static void begin_line(struct client *c, int64_t now, const char *what) {
  fprintf(trace, "%lld %ld %s", (long long)(now + epoch_ns) / 1000, (long)(c - clients), what);
}

static void note(struct client *c, int64_t now, const char *what, const char *detail) {
  if (!trace)
    return;
  begin_line(c, now, what);
  fprintf(trace, *detail ? " %s\n" : "%s\n", detail);
}

static void note_position(struct client *c, int64_t now, const char *what, const char *detail) {
  if (!trace)
    return;
  begin_line(c, now, what);
  fprintf(trace, " %lld-%lld", (long long)(c->id >> SEQUENCE_BITS), (long long)(c->id & ((1 << SEQUENCE_BITS) - 1)));
  fprintf(trace, *detail ? " %s\n" : "%s\n", detail);
}

static void note_end(struct client *c) {
  char detail[64];
  snprintf(detail, sizeof detail, "%d %d", c->status, c->retry_ms);
  note(c, now_ns(), "ended", detail);
}

// ---------------------------------------------------------------- blocks

static int64_t parse_position(const char *text) {
  char *end;
  long long ms = strtoll(text, &end, 10);
  return *end == '-' ? (ms << SEQUENCE_BITS) + atoll(end + 1) : 0;
}

static void admit(struct client *c, int64_t now) {
  if (c->state != ASKED)
    return;
  c->state = STREAMING;
  t.open++;
  if (c->was_admitted) {
    t.resumed++;
    return;
  }
  t.admitted++;
  t.last_admitted_ns = now;
  c->was_admitted = true;
  c->start = c->last = c->id;
  if (is_kind("stalled")) {
    c->muted = true;
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = 0, .data.ptr = c});
  }
}

static void end_block(struct client *c, int64_t now) {
  if (c->id)
    c->resume = c->id;
  if (!strcmp(c->event, "connected")) {
    note_position(c, now, "connected", "");
    admit(c, now);
  } else if (!strcmp(c->event, "reconnect")) {
    note(c, now, "reconnect", c->data);
    c->is_told = true;
  } else if (!strcmp(c->event, "dropped")) {
    note(c, now, "dropped", c->data);
    c->dropped += c->count;
  } else if (!strcmp(c->event, "gap")) {
    note(c, now, "gap", c->data);
    c->gaps++;
  } else if (c->has_data && c->id) {
    note_position(c, now, "event", c->data);
    c->disordered += c->id <= c->last;
    c->last = c->id;
    c->received++;
    t.received++;
  }
  c->id = c->count = 0;
  c->has_data = false;
  c->event[0] = c->data[0] = 0;
}

// RFC 6265 5.2, for one cookie of one server: without attributes; an empty value stands for one that is to be gone.
static void take_cookie(struct client *c, const char *line) {
  int length = strcspn(line, "; ");
  snprintf(c->cookie, sizeof c->cookie, "%.*s", length, length && line[length - 1] != '=' ? line : "");
}

static void end_line(struct client *c, int64_t now) {
  char *line = c->line;
  line[c->held] = 0;
  if (c->held && line[c->held - 1] == '\r')
    line[--c->held] = 0;
  if (c->part == STATUS) {
    c->status = c->held > 9 ? atoi(line + 9) : 0;
    c->part = HEADERS;
  } else if (c->part == HEADERS) {
    if (!strncasecmp(line, "content-length:", 15))
      c->left = atol(line + 15);
    else if (!strncasecmp(line, "transfer-encoding: chunked", 26))
      c->chunked = true;
    else if (!strncasecmp(line, "set-cookie: ", 12))
      take_cookie(c, line + 12);
    else if (!c->held)
      c->part = BODY;
  } else if (!c->held)
    end_block(c, now);
  else if (!strncmp(line, "id: ", 4))
    c->id = parse_position(line + 4);
  else if (!strncmp(line, "event: ", 7))
    snprintf(c->event, sizeof c->event, "%s", line + 7);
  else if (!strncmp(line, "retry: ", 7))
    c->retry_ms = atoi(line + 7);
  else if (!strncmp(line, "data:", 5)) {
    c->has_data = true;
    char *count = strstr(line, "\"count\":");
    c->count = count ? atol(count + 8) : 0;
    if (trace)
      strcpy(c->data, line + (line[5] == ' ' ? 6 : 5));
  }
  c->held = 0;
}

// Takes the bytes up to the end of the line, or all; returns what follows.
static char *take_line(struct client *c, char *p, char *end, bool *whole) {
  char *stop = memchr(p, '\n', end - p);
  long length = (stop ? stop : end) - p, room = LINE_MAX - 1 - c->held;
  memcpy(c->line + c->held, p, length < room ? length : room);
  c->held += length < room ? length : room;
  *whole = stop;
  return stop ? stop + 1 : end;
}

static void take_text(struct client *c, char *p, char *end, int64_t now) {
  for (bool whole; p < end;) {
    p = take_line(c, p, end, &whole);
    if (whole)
      end_line(c, now);
  }
}

static int digit_of(char c) {
  return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

// A chunk, its size and its end may be cut anywhere; whether it was the last one.
static bool take_chunks(struct client *c, char *p, char *end, int64_t now) {
  while (p < end) {
    if (c->chunk == IN_CHUNK) {
      long length = end - p < c->left ? end - p : c->left;
      take_text(c, p, p + length, now);
      p += length;
      c->left -= length;
      if (!c->left)
        c->chunk = AFTER;
    } else if (c->chunk == AFTER) {
      if (*p++ == '\n')
        c->chunk = SIZE;
    } else if (*p == '\n') {
      if (!c->left)
        return true;
      c->chunk = IN_CHUNK;
      p++;
    } else {
      int digit = digit_of(*p++);
      if (digit >= 0)
        c->left = c->left * 16 + digit;
    }
  }
  return false;
}

// ---------------------------------------------------------------- connections

static void come_back(struct client *c, int64_t after_ns) {
  c->state = WAITING;
  c->due_ns = now_ns() + after_ns;
}

// What became of the connection, which is closed.
static void end_connection(struct client *c) {
  enum state was = c->state;
  int64_t lived = now_ns() - c->opened_ns;
  if (is_source())
    note_end(c);
  close(c->fd);
  c->fd = -1;
  if (!is_source()) {
    if (lived > t.longest_ns)
      t.longest_ns = lived;
    if (was == CONNECTING)
      t.not_connected++;
    else if (c->status == 408)
      t.timed_out++;
    else if (!c->status)
      t.cut++;
    else
      t.refused_for_good++;
    come_back(c, 0);
    return;
  }
  if (was == STREAMING) {
    t.ended++;
    t.open--;
  } else if (c->was_admitted && (!c->status || c->status == 200)) {
    // It comes back, and is not let in yet.
  } else if (was == CONNECTING)
    t.not_connected++;
  else if (!c->status)
    t.unanswered++;
  else if (c->status == 200 && c->is_told)
    t.turned_away++;
  else {
    t.refused_for_good++;
    if (!told_why)
      fprintf(stderr, "crowd: a stream was answered with %d\n", c->status);
    told_why = true;
    c->state = DONE;
    return;
  }
  come_back(c, c->retry_ms * 1000000LL);
}

static void send_request(struct client *c) {
  char request[REQUEST_MAX], path[1024], position[64] = "", cookie[COOKIE_MAX + 16] = "";
  snprintf(path, sizeof path, opt.path, c->channel);  // the command line was checked
  if (c->resume)
    snprintf(position, sizeof position, "Last-Event-ID: %lld-%lld\r\n", (long long)(c->resume >> SEQUENCE_BITS),
             (long long)(c->resume & ((1 << SEQUENCE_BITS) - 1)));
  if (*c->cookie)
    snprintf(cookie, sizeof cookie, "Cookie: %s\r\n", c->cookie);
  int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
                        "%s%s\r\n", path, position, cookie);
  send(c->fd, request, length, MSG_NOSIGNAL);  // whole: the send buffer is empty
}

// The next byte of a request that will not be whole before its time is over.
static void drip(struct client *c) {
  static const char HEAD[] = "GET /events?channel=slow HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
  static const char WHOLE[] = "POST /publish/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n";
  char next = 'x', head[256];
  if (is_kind("body") && !c->sent_bytes)
    send(c->fd, head, snprintf(head, sizeof head, WHOLE, SLOW_BODY_BYTES), MSG_NOSIGNAL);
  if (is_kind("head") && c->sent_bytes < (long)sizeof HEAD - 1)
    next = HEAD[c->sent_bytes];
  if (!is_kind("silent"))
    send(c->fd, &next, 1, MSG_NOSIGNAL);
  c->sent_bytes++;
  c->due_ns = now_ns() + opt.drip_ms * 1000000LL;
}

static void open_connection(struct client *c) {
  int on = 1, small = STALLED_RECEIVE_BUFFER, index = c - clients;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (is_kind("stalled"))  // before it connects: the window scale is settled in the handshake
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  struct sockaddr_in source = {.sin_family = AF_INET}, server = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
  source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (opt.network << 8) + index % opt.addresses);
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  bind(c->fd, (struct sockaddr *)&source, sizeof source);
  c->state = CONNECTING;
  c->part = STATUS;
  c->status = c->held = c->sent_bytes = c->id = c->count = 0;
  c->chunk = SIZE;
  c->left = 0;
  c->event[0] = c->data[0] = 0;
  c->chunked = c->is_told = c->has_data = c->muted = c->hung_up = false;
  c->opened_ns = now_ns();
  t.opened += !c->was_admitted;
  if (is_source())
    note(c, c->opened_ns, "open", "");
  if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
    end_connection(c);
  else
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN | EPOLLOUT, .data.ptr = c});
}

static void receive(struct client *c, char *buffer) {
  ssize_t got = read(c->fd, buffer, READ_SIZE);
  if (got < 0 && errno == EAGAIN)
    return;
  if (got <= 0) {
    end_connection(c);
    return;
  }
  int64_t now = now_ns();
  char *p = buffer, *end = buffer + got;
  for (bool whole; p < end && c->part != BODY;) {
    p = take_line(c, p, end, &whole);
    if (whole)
      end_line(c, now);
  }
  if (!is_source())  // it reads until the server ends it
    return;
  if (c->chunked) {
    if (take_chunks(c, p, end, now))  // who is in between would keep the connection
      end_connection(c);
  } else {
    take_text(c, p, end, now);
    if (c->part == BODY && (c->left -= end - p) == 0)  // a whole answer on a connection that is kept
      end_connection(c);
  }
}

static void connected(struct client *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) {
    end_connection(c);
    return;
  }
  c->state = ASKED;
  epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  if (is_source())
    send_request(c);
  else
    drip(c);
}

static void handle(struct client *c, uint32_t events, char *buffer) {
  if (c->fd < 0)  // it was closed by a command since
    return;
  if (c->state == CONNECTING) {
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
      connected(c);
  } else if (c->muted) {  // its connection is broken, which it does not see before it reads
    c->hung_up = true;
    epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
  } else
    receive(c, buffer);
}

// ---------------------------------------------------------------- commands

static void look_at_all(int64_t now) {
  int burst = 0;
  for (int i = 0; i < opt.clients; i++) {
    struct client *c = &clients[i];
    if (c->due_ns > now)
      continue;
    if (c->state == WAITING && burst < BURST) {
      burst++;
      open_connection(c);
    } else if (c->state == ASKED && !is_source())
      drip(c);
  }
}

static void close_some(long count) {
  for (int i = 0; i < opt.clients && count > 0; i++)
    if (clients[i].state == STREAMING) {
      close(clients[i].fd);
      clients[i].fd = -1;
      clients[i].state = DONE;
      t.closed++;
      t.open--;
      count--;
    }
}

static void read_on(char *buffer) {
  for (int i = 0; i < opt.clients; i++) {
    struct client *c = &clients[i];
    if (!c->muted)
      continue;
    c->muted = false;
    while (c->hung_up && c->fd >= 0)  // what the kernel still has of it, until it says that it is broken
      receive(c, buffer);
    if (c->fd >= 0)
      epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
  }
}

static void print_status(void) {
  long under_way = 0;
  for (int i = 0; i < opt.clients; i++)
    under_way += !clients[i].was_admitted && (clients[i].state == CONNECTING || clients[i].state == ASKED);
  printf("opened=%ld admitted=%ld turned_away=%ld unanswered=%ld refused_for_good=%ld not_connected=%ld under_way=%ld "
         "resumed=%ld ended=%ld closed=%ld open=%ld received=%ld timed_out=%ld cut=%ld longest_s=%.2f all_in_s=%.3f\n",
         t.opened, t.admitted, t.turned_away, t.unanswered, t.refused_for_good, t.not_connected, under_way, t.resumed,
         t.ended, t.closed, t.open, t.received, t.timed_out, t.cut, t.longest_ns / 1e9,
         t.last_admitted_ns ? (t.last_admitted_ns - went_ns) / 1e9 : 0);
  fflush(stdout);
}

static void print_clients(void) {
  for (int i = 0; i < opt.clients; i++) {
    struct client *c = &clients[i];
    if (!c->was_admitted)
      continue;
    printf("client %d %s %lld %lld %ld %ld %ld %ld\n", c->channel, c->state == STREAMING ? "open" : "closed",
           (long long)c->start, (long long)c->last, c->received, c->disordered, c->dropped, c->gaps);
  }
}

// Does what is told; false when that is to end.
static bool obey(char *buffer) {
  char command[256];
  ssize_t length = read(0, command, sizeof command - 1);
  if (length <= 0)
    return false;
  command[length] = 0;
  for (char *line = strtok(command, "\n"); line; line = strtok(NULL, "\n")) {
    if (!strcmp(line, "go")) {
      going = true;
      went_ns = now_ns();
    } else if (!strncmp(line, "close ", 6))
      close_some(atol(line + 6));
    else if (!strcmp(line, "read"))
      read_on(buffer);
    else if (!strcmp(line, "finish")) {
      print_clients();
      return false;
    }
  }
  return true;
}

static void run(void) {
  struct epoll_event ready[512];
  char *buffer = malloc(READ_SIZE);
  int64_t deadline = now_ns() + opt.deadline * SECOND, next = 0;
  bool obeying = true;
  epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
  for (long ticks = 0; obeying && now_ns() < deadline;) {
    int n = epoll_wait(epoll, ready, 512, going && t.opened < opt.clients ? 0 : TICK_MS);
    for (int i = 0; i < n && obeying; i++)
      if (ready[i].data.ptr)
        handle(ready[i].data.ptr, ready[i].events, buffer);
      else
        obeying = obey(buffer);
    int64_t now = now_ns();
    if (going && (now >= next || t.opened < opt.clients))
      look_at_all(now);
    if (now >= next) {
      next = now + TICK_MS * 1000000LL;
      if (ticks++ % TICKS_PER_STATUS == 0)
        print_status();
    }
  }
  print_status();
  if (trace)
    fclose(trace);
}

// ---------------------------------------------------------------- the command line

static void __attribute__((noreturn)) usage(const char *what) {
  fprintf(stderr, "crowd: %s\n--port --kind source|stalled|head|body|silent --clients N --path (%%d: channel) --channels N\n"
          "--network N --addresses N (from 127.0.N.1 on) --drip-ms MS --deadline SECONDS --trace FILE\n", what);
  exit(2);
}

static const struct number { const char *name; long *value, least, most; } numbers[] = {
  {"port", &opt.port, 1, 65535},           {"clients", &opt.clients, 1, CLIENTS_MAX},
  {"channels", &opt.channels, 1, 16384},   {"network", &opt.network, 1, 250},
  {"addresses", &opt.addresses, 1, 250},   {"drip-ms", &opt.drip_ms, 10, 60000},
  {"deadline", &opt.deadline, 1, 600},
};
#define LENGTH(array) (sizeof array / sizeof *array)

static void set(const char *name, const char *value) {
  for (const struct number *n = numbers; n < numbers + LENGTH(numbers); n++)
    if (!strcmp(n->name, name)) {
      *n->value = atol(value);
      if (*n->value < n->least || *n->value > n->most)
        usage(name);
      return;
    }
  if (!strcmp(name, "kind"))
    opt.kind = value;
  else if (!strcmp(name, "path"))
    opt.path = value;
  else if (!strcmp(name, "trace"))
    opt.trace = value;
  else
    usage(name);
}

static void check_options(void) {
  const char *place = strchr(opt.path, '%');
  if (place && (place[1] != 'd' || strchr(place + 1, '%')))
    usage("--path has %d once at most, and no other %");
  if (!is_source() && !is_kind("head") && !is_kind("body") && !is_kind("silent"))
    usage("--kind");
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < (rlim_t)opt.clients + 16)
    usage("so many clients need more descriptors than `ulimit -Hn`");
}

int main(int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    if (strncmp(argv[i], "--", 2) || i + 1 == argc)
      usage(argv[i]);
    set(argv[i] + 2, argv[i + 1]);
  }
  check_options();
  start_trace();
  epoll = epoll_create1(0);
  clients = calloc(opt.clients, sizeof *clients);
  for (int i = 0; i < opt.clients; i++)
    clients[i] = (struct client){.fd = -1, .channel = i % opt.channels, .retry_ms = RETRY_MS};
  run();
  fflush(stdout);
  _exit(0);
}
