/* Median and minimum cost of a call, in nanoseconds, in an empty directory. Usage: mediation_cost COUNT */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b) { return (*(long *)a > *(long *)b) - (*(long *)a < *(long *)b); }
static long *took;
static int count;
static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void report(const char *name) {
	qsort(took, count, sizeof *took, compare);
	printf("%s %ld %ld\n", name, took[count / 2], took[0]);
}
#define MEASURE(name, before, call, after)                                                                             \
	do {                                                                                                               \
		for (int i = 0; i < count; i++) {                                                                              \
			before;                                                                                                    \
			long start = now();                                                                                        \
			call;                                                                                                      \
			took[i] = now() - start;                                                                                   \
			after;                                                                                                     \
		}                                                                                                              \
		report(name);                                                                                                  \
	} while (0)

int main(int argc, char **argv) {
	int fd = -1;
	char name[32];
	count = atoi(argv[1]);
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
	MEASURE("open-tmp", (void)0, fd = open("/tmp/remit-cost", O_CREAT | O_WRONLY, 0600), close(fd));
	unlink("/tmp/remit-cost");
	MEASURE("stat", (void)0, access("target", F_OK), (void)0);
	return 0;
}
