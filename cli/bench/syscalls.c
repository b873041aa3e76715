/* Median and minimum cost of system calls, in nanoseconds, in an empty directory: of all, or of those that are named (what
   opens or renames existing files wants open-new before it). Usage: syscalls COUNT DIRECTORY [NAME...] */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* So many calls at a time, where one takes less than reading the clock does. */
#define BATCH 100

extern char **environ;
static int compare(const void *a, const void *b) { return (*(long *)a > *(long *)b) - (*(long *)a < *(long *)b); }
static long *took;
static int count;
static char **names;
static int wanted(const char *name) {
	for (char **one = names; *one; one++)
		if (strcmp(*one, name) == 0)
			return 1;
	return *names == NULL;
}
static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void report(const char *name, int calls) {
	qsort(took, calls, sizeof *took, compare);
	printf("%s %ld %ld\n", name, took[calls / 2], took[0]);
}
#define MEASURE_N(calls, what, before, call, after)                                                                    \
	do {                                                                                                               \
		if (!wanted(what))                                                                                             \
			break;                                                                                                     \
		for (int i = 0; i < (calls); i++) {                                                                            \
			before;                                                                                                    \
			long start = now();                                                                                        \
			call;                                                                                                      \
			took[i] = now() - start;                                                                                   \
			after;                                                                                                     \
		}                                                                                                              \
		report(what, calls);                                                                                           \
	} while (0)
#define MEASURE(what, before, call, after) MEASURE_N(count, what, before, call, after)

int main(int argc, char **argv) {
	int fd = -1, taken;
	pid_t child;
	char name[32], *none[] = {"true", NULL};
	struct stat found;
	/* Port 9 of the own loopback: nothing listens there, and a refusal comes at once. */
	struct sockaddr_in closed = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	/* A listener of its own. What connects to it ends by a reset: no port is kept waiting. */
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t size = sizeof own;
	struct linger reset = {1, 0};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (argc < 3 || chdir(argv[2]) != 0)
		return 2;
	count = atoi(argv[1]);
	names = argv + 3;
	took = malloc(count * sizeof *took);
	MEASURE("open-new", sprintf(name, "n%d", i), fd = open(name, O_CREAT | O_WRONLY, 0644), close(fd));
	MEASURE("open-existing-write", sprintf(name, "n%d", i), fd = open(name, O_WRONLY), close(fd));
	MEASURE("open-existing-read", sprintf(name, "n%d", i), fd = open(name, O_RDONLY), close(fd));
	MEASURE("rename", (sprintf(name, "n%d", i)), rename(name, "target"), (void)0);
	MEASURE("mkdir", sprintf(name, "d%d", i), mkdir(name, 0755), (void)0);
	MEASURE("rmdir", sprintf(name, "d%d", i), rmdir(name), (void)0);
	MEASURE("create-then-unlink", (fd = open("u", O_CREAT | O_WRONLY, 0644), close(fd)), unlink("u"), (void)0);
	MEASURE("chmod", (void)0, chmod("target", 0600), (void)0);
	MEASURE("open-dev-null", (void)0, fd = open("/dev/null", O_WRONLY), close(fd));
	MEASURE("connect", fd = socket(AF_INET, SOCK_STREAM, 0),
		connect(fd, (struct sockaddr *)&closed, sizeof closed), close(fd));
	bind(listener, (struct sockaddr *)&own, sizeof own);
	listen(listener, 1);
	getsockname(listener, (struct sockaddr *)&own, &size);
	MEASURE("connect-own",
		(fd = socket(AF_INET, SOCK_STREAM, 0), setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset)),
		connect(fd, (struct sockaddr *)&own, sizeof own),
		(taken = accept(listener, NULL, NULL), close(fd), close(taken)));
	MEASURE_N(count < 100 ? count : 100, "spawn", (void)0,
		(posix_spawn(&child, "/bin/true", NULL, NULL, none, environ), waitpid(child, NULL, 0)), (void)0);
	MEASURE("stat", (void)0, stat("target", &found), (void)0);
	MEASURE("access", (void)0, access("target", F_OK), (void)0);
	MEASURE("getppid", (void)0, for (int j = 0; j < BATCH; j++) getppid(), (void)0);
	return 0;
}
