/* Notifications of a seccomp listener, answered without the interpreter where nothing about them is in question.
 *
 * remit.sandbox.kernel.fastpath has this compiled, as bytes (tests/unit/test_fastpath_code.py compiles it again), and says
 * what is in the tables. Freestanding: no library, no data, no relocation, nothing but its arguments and system calls.
 *
 * A call is answered here if all of it holds, and is left to the mediator otherwise, with nothing done:
 *  - what happens can be told afterwards (events): by whom, if the record has not heard of the caller yet (callers);
 *  - each name is plain (no empty component, "." or "..", no slash at the end), an ancestor of it is in the table of the
 *    directories in which no rule refuses an ordinary name, and each component after that is ordinary: not in names;
 *  - no link is on the way: everything is looked up below the workspace's descriptor with RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH.
 * What the kernel decides on (execve(2), and names in a directory that is elsewhere) goes on, and only what it names is told.
 *
 * The flags that it is compiled with are in that test; the bytes are the section .text.
 */
typedef unsigned long u64;
typedef unsigned int u32;
typedef long s64;

#define ARGUMENTS 6
#define TEXT 512
#define READ_AT_MOST 256
#define PAGE 4096

#define UMASK 0x80000000U
#define POLLIN 1
#define IDLE_MS 5
#define BUSY_NS 20000000L
#define STALE_NS 200000L

enum { LEFT = 0, DONE = 1 }; /* what is returned; -errno: the listener's */

struct notification { u64 id; u32 pid, flags; u32 nr, arch; u64 ip; u64 arguments[ARGUMENTS]; };
struct response { u64 id; s64 value; int error; u32 flags; };
struct addfd { u64 id; u32 flags, descriptor, number, descriptor_flags; };
struct how { u64 flags, mode, resolve; };
struct vector { u64 base, size; };
struct directory {
	u64 hash;
	u32 size, anchor, below;
	u32 elsewhere;          /* it is no place of the mediator's: what is in it, the kernel decides on and performs */
	char text[256 - 24];
};

struct event {              /* an answered call */
	s64 when;               /* ns, CLOCK_MONOTONIC */
	u32 pid, nr;
	s64 error;              /* what the caller got: 0, or an errno; -1: the kernel is to say */
	u64 sizes[2];           /* of the names below */
	u64 start, program_size; /* of a caller that is new here: clock ticks since boot, and the bytes of its program's path */
	char text[2][TEXT];     /* what it named, canonical; of a link the new name first */
	char program[TEXT];
};

struct context {
	struct notification call;
	u64 published;          /* events so far; whoever reads them may be another thread */
	u64 events, events_mask;
	s64 load;               /* /proc/loadavg, or -1: where callers wake up is not chosen */
	u64 cpus;
	u64 mask_size;          /* bytes of a CPU mask */
	u64 everywhere;         /* the address of the mask of all */
	u64 directories, directories_mask;
	u64 names, names_mask;
	u64 callers, callers_mask; /* with UMASK where this process's umask is theirs */
	u64 devices, devices_mask; /* what is opened for writing by everybody, and left to the kernel */
	u64 anybody;            /* who calls is told to nobody */
	u64 umask;              /* this process's umask is every caller's */
	u64 makes;              /* what is made for this caller gets its umask */
	u64 running;            /* 0: not asked */
	u64 stranger;           /* the caller is not known */
	s64 now, asked;         /* when this call came, and when that was asked */
	struct event *event;    /* the next one */
};

struct descriptor { int number; short events, revents; };

/* x86-64 */
enum {
	NR_read = 0, NR_close = 3, NR_poll = 7, NR_ioctl = 16, NR_pread64 = 17, NR_fcntl = 72,
	NR_sched_setaffinity = 203, NR_sched_getaffinity = 204, NR_clock_gettime = 228,
	NR_mkdirat = 258, NR_newfstatat = 262, NR_unlinkat = 263, NR_linkat = 265, NR_readlinkat = 267, NR_getcpu = 309,
	NR_process_vm_readv = 310, NR_renameat2 = 316, NR_openat2 = 437,
	NR_open = 2, NR_creat = 85, NR_openat = 257, NR_mkdir = 83, NR_rmdir = 84, NR_unlink = 87, NR_link = 86, NR_rename = 82,
	NR_renameat = 264, NR_execve = 59
};
enum { EPERM = 1, ENOENT = 2, EACCES = 13, EEXIST = 17 };
enum {
	O_ACCMODE = 3, O_CREAT = 0100, O_EXCL = 0200, O_NOCTTY = 0400, O_TRUNC = 01000, O_APPEND = 02000, O_NONBLOCK = 04000,
	O_DSYNC = 010000, O_LARGEFILE = 0100000, O_DIRECTORY = 0200000, O_NOFOLLOW = 0400000, O_CLOEXEC = 02000000,
	O_SYNC = 04010000, O_PATH = 010000000
};
#define SIMPLE (O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_LARGEFILE \
	| O_NOFOLLOW | O_CLOEXEC)
#define AT_FDCWD (-100)
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_SYMLINK_FOLLOW 0x400
#define AT_REMOVEDIR 0x200
#define F_SETFL 4
#define STRICT (0x04 | 0x08)
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFLNK 0120000
#define RECV 0xC0502100UL
#define SEND 0xC0182101UL
#define ADDFD 0x40182103UL
#define SET_FLAGS 0x40082104UL
#define ADDFD_AND_SEND 2
#define CONTINUE 1

static inline __attribute__((always_inline)) s64 sys(s64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
	register u64 r10 __asm__("r10") = d;
	register u64 r8 __asm__("r8") = e;
	register u64 r9 __asm__("r9") = f;
	s64 result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return result;
}
#define sys3(nr, a, b, c) sys(nr, (u64)(a), (u64)(b), (u64)(c), 0, 0, 0)
#define sys5(nr, a, b, c, d, e) sys(nr, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e), 0)

static int opened(struct context *, s64, int, u64, u64, u64);
static int changed(struct context *, s64, int, int, u64, u64);
static int linked(struct context *, s64, int, u64, int, u64);
static int renamed(struct context *, s64, int, u64, int, u64);

static int executed(struct context *, s64, u64);

static int answered(struct context *, s64);

/* The whole of it; what is first in the source is first in the section. The first notification is there already. Then, if
 * ``count`` is not 0, it goes on for as long as one comes after the other and nothing comes from ``others``, whose first
 * place is the listener's: DONE; or LEFT with one that is not answered. */
s64 step(struct context *c, s64 listener, struct descriptor *others, s64 count) {
	u64 last = c->published + c->events_mask;
	s64 first = 0;
	for (;;) {
		u64 *words = (u64 *)&c->call;
		for (u64 i = 0; i < sizeof c->call / sizeof *words; i++) words[i] = 0;
		s64 result = sys3(NR_ioctl, listener, RECV, &c->call);
		if (result < 0) return result;
		c->event = (struct event *)c->events + (c->published & c->events_mask);
		if (!answered(c, listener)) return LEFT;
		if (!first) first = c->now;
		if (!count || c->published == last || c->now - first > BUSY_NS) return DONE;
		others->number = listener; others->events = POLLIN;
		for (s64 i = 0; i < count; i++) others[i].revents = 0;
		/* A timeout, a signal, something else, or the listener's end: not for here. */
		if (sys3(NR_poll, others, count, IDLE_MS) != 1 || others->revents != POLLIN) return DONE;
	}
}

static int answered(struct context *c, s64 listener) {
	u32 pid = c->call.pid;
	u32 known = ((u32 *)c->callers)[pid & c->callers_mask];
	c->stranger = !c->anybody && (known & ~UMASK) != pid;
	c->event->program_size = 0;
	c->makes = c->umask || known == (pid | UMASK);
	u64 *a = c->call.arguments;
	c->event->sizes[0] = c->event->sizes[1] = 0;
	s64 now[2];
	sys3(NR_clock_gettime, 1, now, 0);
	c->now = now[0] * 1000000000 + now[1];
	if (c->now - c->asked > STALE_NS) c->running = 0;
	switch (c->call.nr) {
	case NR_open: return opened(c, listener, AT_FDCWD, a[0], (u32)a[1], a[1] & O_CREAT ? a[2] & 07777 : 0);
	case NR_creat: return opened(c, listener, AT_FDCWD, a[0], O_CREAT | O_TRUNC | 1, a[1] & 07777);
	case NR_openat: return opened(c, listener, a[0], a[1], (u32)a[2], a[2] & O_CREAT ? a[3] & 07777 : 0);
	case NR_mkdir: return changed(c, listener, NR_mkdirat, AT_FDCWD, a[0], a[1] & 07777);
	case NR_mkdirat: return changed(c, listener, NR_mkdirat, a[0], a[1], a[2] & 07777);
	case NR_unlink: return changed(c, listener, NR_unlinkat, AT_FDCWD, a[0], 0);
	case NR_rmdir: return changed(c, listener, NR_unlinkat, AT_FDCWD, a[0], AT_REMOVEDIR);
	case NR_unlinkat: return (u32)a[2] & ~AT_REMOVEDIR ? LEFT : changed(c, listener, NR_unlinkat, a[0], a[1], (u32)a[2]);
	case NR_link: return linked(c, listener, AT_FDCWD, a[0], AT_FDCWD, a[1]);
	case NR_linkat: return (u32)a[4] ? LEFT : linked(c, listener, a[0], a[1], a[2], a[3]);
	case NR_rename: return renamed(c, listener, AT_FDCWD, a[0], AT_FDCWD, a[1]);
	case NR_renameat: return renamed(c, listener, a[0], a[1], a[2], a[3]);
	case NR_execve: return executed(c, listener, a[0]);
	case NR_renameat2: return (u32)a[4] ? LEFT : renamed(c, listener, a[0], a[1], a[2], a[3]);
	}
	return LEFT;
}

static u64 hashed(const char *text, u64 size) { /* FNV-1a */
	u64 hash = 0xcbf29ce484222325UL;
	for (u64 i = 0; i < size; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3UL;
	return hash ? hash : 1;
}

static int same(const char *one, const char *other, u64 size) {
	for (u64 i = 0; i < size; i++)
		if (one[i] != other[i]) return 0;
	return 1;
}

static char *decimal(char *to, u32 value) {
	char digits[10];
	int n = 0;
	do digits[n++] = '0' + value % 10; while (value /= 10);
	while (n) *to++ = digits[--n];
	return to;
}

/* The string at ``where`` of the caller's memory, at most READ_AT_MOST bytes with its NUL; its size, or -1. */
static s64 string(u32 pid, u64 where, char *to) {
	u64 size = 0;
	while (size < READ_AT_MOST) {
		u64 most = PAGE - (where & (PAGE - 1));
		if (most > READ_AT_MOST - size) most = READ_AT_MOST - size;
		struct vector local, remote;
		local.base = (u64)(to + size); local.size = most;
		remote.base = where; remote.size = most;
		s64 got = sys5(NR_process_vm_readv, pid, &local, 1, &remote, 1);
		if (got <= 0) return -1;
		for (s64 i = 0; i < got; i++)
			if (!to[size + i]) return size + i;
		if ((u64)got < most) return -1;
		size += got;
		where += got;
	}
	return -1;
}

/* "/proc/PID/" at ``to``; its end. */
static char *process(char *to, u32 pid) {
	*to++ = '/'; *to++ = 'p'; *to++ = 'r'; *to++ = 'o'; *to++ = 'c'; *to++ = '/';
	to = decimal(to, pid);
	*to++ = '/';
	return to;
}

/* "/proc/self/fd/DESCRIPTOR" */
static void own(char *to, s64 descriptor) {
	*to++ = '/'; *to++ = 'p'; *to++ = 'r'; *to++ = 'o'; *to++ = 'c'; *to++ = '/';
	*to++ = 's'; *to++ = 'e'; *to++ = 'l'; *to++ = 'f'; *to++ = '/'; *to++ = 'f'; *to++ = 'd'; *to++ = '/';
	to = decimal(to, descriptor);
	*to = 0;
}

/* The working directory or the descriptor ``at`` of the caller; how much of ``to`` it takes, or -1. */
static s64 base(u32 pid, int at, char *to) {
	char link[48], *end = process(link, pid);
	if (at == AT_FDCWD) { *end++ = 'c'; *end++ = 'w'; *end++ = 'd'; }
	else if (at >= 0) { *end++ = 'f'; *end++ = 'd'; *end++ = '/'; end = decimal(end, at); }
	else return -1;
	*end = 0;
	s64 size = sys5(NR_readlinkat, AT_FDCWD, link, to, TEXT - READ_AT_MOST - 8, 0);
	/* "/a (deleted)" is no place, and neither is "pipe:[1]" */
	if (size <= 0 || size >= TEXT - READ_AT_MOST - 8 || to[0] != '/' || to[size - 1] == ')') return -1;
	return size == 1 ? 0 : size;
}

/* For the record: which program the caller is, and when it started. From now on it is known. */
static int introduced(struct context *c) {
	if (!c->stranger) return 1;
	u32 pid = c->call.pid;
	struct event *event = c->event;
	char path[48], text[TEXT], *end = process(path, pid);
	end[0] = 'e'; end[1] = 'x'; end[2] = 'e'; end[3] = 0;
	s64 size = sys5(NR_readlinkat, AT_FDCWD, path, event->program, TEXT, 0);
	if (size <= 0 || size >= TEXT) return 0;
	end[0] = 's'; end[1] = 't'; end[2] = 'a'; end[3] = 't'; end[4] = 0;
	s64 file = sys5(NR_openat, AT_FDCWD, path, O_CLOEXEC, 0, 0);
	if (file < 0) return 0;
	s64 got = sys3(NR_read, file, text, TEXT), at = got;
	sys3(NR_close, file, 0, 0);
	/* proc_pid_stat(5): after the name, which may hold anything, the 20th field is the start. */
	while (at > 0 && text[at - 1] != ')') at--;
	for (int field = 0; at < got && field < 20; at++) field += text[at] == ' ';
	u64 start = 0;
	for (; at < got && text[at] >= '0' && text[at] <= '9'; at++) start = start * 10 + (text[at] - '0');
	if (!start) return 0;
	event->start = start;
	event->program_size = size;
	((u32 *)c->callers)[pid & c->callers_mask] = pid;
	c->stranger = 0;
	return 1;
}

struct name { struct directory *directory; char *last; char *text; };

static int among(u64 table, u64 mask, u64 hash) {
	u64 *hashes = (u64 *)table;
	for (u64 slot = hash & mask; hashes[slot]; slot = (slot + 1) & mask)
		if (hashes[slot] == hash) return 1;
	return 0;
}

static struct directory *listed(struct context *c, const char *text, u64 size) {
	struct directory *directories = (struct directory *)c->directories;
	u64 hash = hashed(text, size);
	for (u64 slot = hash & c->directories_mask; directories[slot].hash; slot = (slot + 1) & c->directories_mask)
		if (directories[slot].hash == hash && directories[slot].size == size && same(directories[slot].text, text, size))
			return directories + slot;
	return 0;
}

/* What the caller names, if nothing about it is in question. */
static int named(struct context *c, int which, int at, u64 where, struct name *name) {
	char *text = c->event->text[which];
	char path[READ_AT_MOST];
	s64 size = string(c->call.pid, where, path);
	if (size <= 0) return 0;
	s64 end = 0, i = 0;
	if (path[0] != '/') {
		end = base(c->call.pid, at, text);
		if (end < 0) return 0;
	} else i = 1;
	for (;;) {
		s64 from = i;
		text[end++] = '/';
		while (i < size && path[i] != '/') text[end++] = path[i++];
		s64 length = i - from;
		if (length == 0 || (path[from] == '.' && (length == 1 || (length == 2 && path[from + 1] == '.')))) return 0;
		if (i == size) break;
		i++;
	}
	text[end] = 0;
	c->event->sizes[which] = end;
	name->text = text;
	name->directory = 0;
	for (s64 slash = 0;;) {
		s64 next = slash + 1;
		while (next < end && text[next] != '/') next++;
		if (name->directory && among(c->names, c->names_mask, hashed(text + slash + 1, next - slash - 1))) name->directory = 0;
		if (next == end) {
			name->last = text + slash + 1;
			return name->directory != 0;
		}
		struct directory *found = listed(c, text, next);
		if (found) name->directory = found;
		slash = next;
	}
}

static s64 open(int at, const char *path, u64 flags, u64 mode) {
	struct how how;
	how.flags = flags | O_CLOEXEC; how.mode = mode; how.resolve = STRICT;
	return sys5(NR_openat2, at, path, &how, sizeof how, 0);
}

/* The directory that a name is in: a descriptor, which ``leave`` closes, or -1. */
static s64 enter(struct name *name) {
	const char *below = name->text + name->directory->below;
	if (below >= name->last) return name->directory->anchor;
	name->last[-1] = 0;
	s64 descriptor = open(name->directory->anchor, below, O_PATH | O_DIRECTORY, 0);
	name->last[-1] = '/';
	return descriptor;
}

static void leave(struct name *name, s64 descriptor) {
	if (descriptor >= 0 && descriptor != name->directory->anchor) sys3(NR_close, descriptor, 0, 0);
}

/* How many threads run, or want to, on the whole machine: asked now and then. */
static u32 running(struct context *c) {
	if (c->running) return c->running;
	c->asked = c->now;
	char text[64];
	s64 size = sys5(NR_pread64, c->load, text, sizeof text, 0, 0);
	for (s64 i = 1; i < size; i++)
		if (text[i] == '/') {
			u32 number = 0, unit = 1;
			for (s64 k = i - 1; k >= 0 && text[k] >= '0' && text[k] <= '9'; k--, unit *= 10) number += (text[k] - '0') * unit;
			return c->running = number;
		}
	return 0;
}

/* Before the answer: whoever tells how the command ended finds it. */
static void publish(struct context *c, s64 error) {
	struct event *event = c->event;
	event->when = c->now; event->pid = c->call.pid; event->nr = c->call.nr; event->error = error;
	*(volatile u64 *)&c->published += 1;
}

static void reply(struct context *c, s64 listener, struct response *response) {
	int elsewhere = c->load >= 0 && running(c) != 1;
	u64 flags = 0;
	if (elsewhere) sys3(NR_ioctl, listener, SET_FLAGS, flags);
	sys3(NR_ioctl, listener, SEND, response);
	flags = 1;
	if (elsewhere) sys3(NR_ioctl, listener, SET_FLAGS, flags);
}

static void send(struct context *c, s64 listener, s64 value, s64 error) {
	struct response response;
	response.id = c->call.id; response.value = value; response.error = -error; response.flags = 0;
	reply(c, listener, &response);
}

static int answer(struct context *c, s64 listener, s64 error) {
	publish(c, error);
	send(c, listener, 0, error);
	return DONE;
}

static void everywhere(struct context *c, u32 pid) {
	sys3(NR_sched_setaffinity, pid, c->mask_size, c->everywhere);
}

/* As remit.sandbox.kernel.placement: caller and mediator keep to one CPU until the descriptor is handed over. */
static int together(struct context *c) {
	u64 mask[128];
	u32 cpu;
	/* With nothing idle there is no idle CPU to wake. */
	if (c->load < 0 || running(c) >= c->cpus) return 0;
	s64 size = sys3(NR_sched_getaffinity, c->call.pid, sizeof mask, mask);
	if (size != (s64)c->mask_size || !same((char *)mask, (char *)c->everywhere, size)) return 0;
	if (sys3(NR_getcpu, &cpu, 0, 0)) return 0;
	for (s64 i = 0; i < size / 8; i++) mask[i] = 0;
	mask[cpu / 64] = 1UL << cpu % 64;
	if (sys3(NR_sched_setaffinity, 0, size, mask)) return 0;
	if (sys3(NR_sched_setaffinity, c->call.pid, size, mask)) {
		everywhere(c, 0);
		return 0;
	}
	return 1;
}

/* Answer with a copy of the descriptor; its error, if it could not be handed over: then nothing is answered. */
static s64 give(struct context *c, s64 listener, s64 descriptor, u64 flags) {
	struct addfd add;
	add.id = c->call.id; add.flags = ADDFD_AND_SEND; add.descriptor = descriptor; add.number = 0;
	add.descriptor_flags = flags & O_CLOEXEC;
	if (!together(c)) {
		publish(c, 0);
		s64 result = sys3(NR_ioctl, listener, ADDFD, &add);
		return result < 0 && result != -ENOENT ? -result : 0;
	}
	/* Not with SEND: the caller must not run before its CPUs are its own again. */
	add.flags = 0;
	s64 number = sys3(NR_ioctl, listener, ADDFD, &add);
	everywhere(c, c->call.pid);
	everywhere(c, 0);
	if (number < 0 && number != -ENOENT) return -number;
	publish(c, 0);
	send(c, listener, number, 0);
	return 0;
}

static void proceed(struct context *c, s64 listener) {
	struct response response;
	response.id = c->call.id; response.value = 0; response.error = 0; response.flags = CONTINUE;
	reply(c, listener, &response);
}

/* The name that was no place of the mediator's is one of the devices: the kernel opens it, and nobody is told. */
static int everybodys(struct context *c, s64 listener) {
	struct event *event = c->event;
	if (!event->sizes[0] || !among(c->devices, c->devices_mask, hashed(event->text[0], event->sizes[0]))) return 0;
	proceed(c, listener);
	return 1;
}

/* Whether no link leads from there to somewhere else. ``follows``: one at the end is on the way, too. */
static int stays(struct name *name, int follows) {
	u32 status[36]; /* struct stat: the mode is at 24 */
	s64 directory = enter(name);
	if (directory < 0) return 0;
	int link = follows && !sys5(NR_newfstatat, directory, name->last, status, AT_SYMLINK_NOFOLLOW, 0)
		&& (status[6] & S_IFMT) == S_IFLNK;
	leave(name, directory);
	return !link;
}

/* Names that are elsewhere: it is the kernel's to decide. */
static int went_on(struct context *c, s64 listener, struct name *one, struct name *other, int follows) {
	if (!one->directory->elsewhere || (other && !other->directory->elsewhere)) return LEFT;
	if (!stays(one, follows) || (other && !stays(other, follows)) || !introduced(c)) return LEFT;
	publish(c, -1);
	proceed(c, listener);
	return DONE;
}

static int opened(struct context *c, s64 listener, int at, u64 where, u64 flags, u64 mode) {
	struct name name;
	if (!(flags & (O_ACCMODE | O_CREAT | O_TRUNC)) || flags & ~SIMPLE || mode & 06000) return LEFT;
	if (!named(c, 0, at, where, &name)) return everybodys(c, listener) ? DONE : LEFT;
	if (name.directory->elsewhere) return went_on(c, listener, &name, 0, 1);
	if (flags & O_CREAT && !c->makes) return LEFT;
	if (!introduced(c)) return LEFT;
	const char *path = name.text + name.directory->below;
	int made = 0;
	s64 descriptor = -1;
	if (flags & O_CREAT) {
		descriptor = open(name.directory->anchor, path, flags | O_EXCL, mode);
		made = descriptor >= 0;
		if (descriptor == -EEXIST && flags & O_EXCL) return answer(c, listener, EEXIST);
	}
	if (!made) {
		/* A FIFO without a reader, a link, whatever else: the mediator knows how. To read, a FIFO would have to wait. */
		if (!(flags & O_ACCMODE)) return LEFT;
		descriptor = open(name.directory->anchor, path, flags | O_NONBLOCK, mode);
		if (descriptor < 0) return LEFT;
		if (!(flags & O_NONBLOCK)) sys3(NR_fcntl, descriptor, F_SETFL, flags);
	}
	u64 before = c->published;
	s64 error = give(c, listener, descriptor, flags);
	if (error) {
		if (made) {
			s64 directory = enter(&name);
			if (directory >= 0) sys3(NR_unlinkat, directory, name.last, 0);
			leave(&name, directory);
		}
		if (c->published == before) publish(c, error);
		c->event->error = error;
		send(c, listener, 0, error);
	}
	sys3(NR_close, descriptor, 0, 0);
	return DONE;
}

static int changed(struct context *c, s64 listener, int nr, int at, u64 where, u64 argument) {
	struct name name;
	if (!named(c, 0, at, where, &name)) return LEFT;
	if (name.directory->elsewhere) return went_on(c, listener, &name, 0, 0);
	if ((nr == NR_mkdirat && !c->makes) || !introduced(c)) return LEFT;
	s64 directory = enter(&name);
	if (directory < 0) return LEFT;
	s64 result = sys3(nr, directory, name.last, argument);
	leave(&name, directory);
	return answer(c, listener, -result);
}

static int linked(struct context *c, s64 listener, int from, u64 old, int to, u64 new) {
	struct name source, target;
	char link[32];
	if (!named(c, 0, to, new, &target) || !named(c, 1, from, old, &source)) return LEFT;
	if (source.directory->elsewhere || target.directory->elsewhere) return LEFT;
	if (!introduced(c)) return LEFT;
	/* Of what is no link: that would be ELOOP. */
	s64 descriptor = open(source.directory->anchor, source.text + source.directory->below, O_PATH, 0);
	if (descriptor < 0) return LEFT;
	s64 directory = enter(&target);
	int done = LEFT;
	if (directory >= 0) {
		own(link, descriptor);
		s64 result = sys5(NR_linkat, AT_FDCWD, link, directory, target.last, AT_SYMLINK_FOLLOW);
		done = answer(c, listener, -result);
	}
	leave(&target, directory);
	sys3(NR_close, descriptor, 0, 0);
	return done;
}

static int renamed(struct context *c, s64 listener, int from, u64 old, int to, u64 new) {
	struct name source, target;
	u32 status[36]; /* struct stat: the mode is at 24 */
	if (!named(c, 0, from, old, &source) || !named(c, 1, to, new, &target)) return LEFT;
	if (source.directory->elsewhere || target.directory->elsewhere) return went_on(c, listener, &source, &target, 0);
	u64 size = c->event->sizes[0];
	if ((size == c->event->sizes[1] && same(source.text, target.text, size)) || !introduced(c)) return LEFT;
	s64 first = enter(&source), second = first < 0 ? -1 : enter(&target);
	int done = LEFT;
	if (second >= 0 && !sys5(NR_newfstatat, first, source.last, status, AT_SYMLINK_NOFOLLOW, 0)
		&& (status[6] & S_IFMT) == S_IFREG) {
		s64 result = sys5(NR_renameat2, first, source.last, second, target.last, 0);
		done = answer(c, listener, -result);
	}
	leave(&source, first);
	leave(&target, second);
	return done;
}

/* Mounts and Landlock decide. All that the record wants is asked before: after the answer it is another program, or has ended. */
static int executed(struct context *c, s64 listener, u64 where) {
	struct event *event = c->event;
	char *text = event->text[0], link[32];
	u32 *caller = (u32 *)c->callers + (c->call.pid & c->callers_mask);
	s64 size = string(c->call.pid, where, text);
	/* As resolve.View.lexical: a spelling that is no place. */
	if (size < 2 || text[0] != '/' || text[size - 1] == '/') return LEFT;
	for (s64 i = 0; i < size; i++) {
		if (text[i] == '/' && (text[i + 1] == '/' || (text[i + 1] == '.' && (text[i + 2] == '/' || !text[i + 2])))) return LEFT;
		if (text[i] == '.' && text[i + 1] == '.') return LEFT;
	}
	if (text[1] == 'p' && text[2] == 'r' && text[3] == 'o' && text[4] == 'c' && (!text[5] || text[5] == '/')) return LEFT;
	if (!introduced(c)) return LEFT;
	event->sizes[0] = size;
	s64 descriptor = sys5(NR_openat, AT_FDCWD, text, O_PATH | O_CLOEXEC, 0, 0);
	if (descriptor >= 0) {
		own(link, descriptor);
		size = sys5(NR_readlinkat, AT_FDCWD, link, text, TEXT, 0);
		event->sizes[0] = size > 0 && size < TEXT ? size : 0;
		sys3(NR_close, descriptor, 0, 0);
	} else if (descriptor != -EACCES && descriptor != -EPERM) {
		event->sizes[0] = 0; /* nothing is there */
	}
	if ((*caller & ~UMASK) == c->call.pid) *caller = 0; /* it will be another program */
	publish(c, -1);
	proceed(c, listener);
	return DONE;
}
