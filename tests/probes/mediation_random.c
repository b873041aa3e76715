/* A seeded sequence of file calls; one line for each: number, call, result, errno. Run natively and mediated, the two
 * outputs and the two trees must be the same. Usage: mediation_random SEED COUNT */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long long state;
static unsigned rnd(unsigned n) {
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (unsigned)(state >> 33) % n;
}
static const char *names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "objects", "hooks", "config", "bin"};
static char top[512];
static int fds[4] = {-1, -1, -1, -1};

static char *path(char *out) {
	static char big[5000];
	unsigned kind = rnd(100);
	if (kind == 0) return (char *)8;
	if (kind == 1) { out[0] = 0; return out; }
	if (kind == 2) { memset(out, 'n', 256); out[256] = 0; return out; }
	if (kind == 3) { memset(big, '/', 4200); big[4200] = 0; strcpy(big + 4094, "aa"); return big; }
	if (kind == 4) { memset(out, 'n', 255); out[255] = 0; return out; }
	out[0] = 0;
	if (kind < 12) { strcpy(out, top); strcat(out, "/"); }
	else if (kind < 15) strcpy(out, "/proc/self/cwd/");
	else if (kind < 17) strcpy(out, "/proc/thread-self/cwd/");
	else if (kind < 19) sprintf(out, "/proc/%d/cwd/", getpid());
	else if (kind < 22) sprintf(out, "/proc/self/fd/%d/", fds[rnd(4)]);
	else if (kind < 23) sprintf(out, "/proc/self/root%s/", top);
	else if (kind < 25) strcpy(out, "../");
	unsigned n = 1 + rnd(3);
	for (unsigned i = 0; i < n; i++) {
		unsigned x = rnd(30);
		if (x == 0) strcat(out, "..");
		else if (x == 1) strcat(out, ".");
		else strcat(out, names[rnd(12)]);
		if (i + 1 < n) strcat(out, rnd(10) ? "/" : "//");
	}
	if (rnd(16) == 0) strcat(out, "/");
	return out;
}
static int dirfd_(void) {
	unsigned x = rnd(8);
	if (x < 4) return AT_FDCWD;
	if (x == 4) return rnd(6) ? fds[0] : 999;
	return fds[rnd(4)];
}
static int flags_(void) {
	static const int acc[] = {O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY};
	int f = acc[rnd(4)];
	if (rnd(3)) f |= O_CREAT;
	if (rnd(6) == 0) f |= O_EXCL;
	if (rnd(5) == 0) f |= O_TRUNC;
	if (rnd(6) == 0) f |= O_APPEND;
	if (rnd(8) == 0) f |= O_NOFOLLOW;
	if (rnd(12) == 0) f |= O_DIRECTORY;
	if (rnd(4) == 0) f |= O_CLOEXEC;
	if (rnd(8) == 0) f |= O_NONBLOCK;
	if (rnd(30) == 0) f |= O_PATH;
	if (rnd(20) == 0) f = O_TMPFILE | (rnd(4) ? O_RDWR : O_RDONLY);
	return f;
}
static void opened(int i, const char *what, int fd) {
	int e = errno;
	if (fd < 0) { printf("%d %s -1 %d\n", i, what, e); return; }
	struct stat st;
	fstat(fd, &st);
	printf("%d %s fd %d fl %x cloexec %d mode %o size %ld\n", i, what, fd, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD), st.st_mode,
	       S_ISREG(st.st_mode) ? (long)st.st_size : 0L);
	char text[32];
	int n = sprintf(text, "<%d>", i);
	if (S_ISREG(st.st_mode)) write(fd, text, n);
	if ((fcntl(fd, F_GETFL) & O_TMPFILE) == O_TMPFILE && rnd(2)) {
		char p[64], b[512];
		sprintf(p, "/proc/self/fd/%d", fd);
		int r = rnd(2) ? linkat(AT_FDCWD, p, AT_FDCWD, path(b), AT_SYMLINK_FOLLOW) : linkat(fd, "", AT_FDCWD, path(b), AT_EMPTY_PATH);
		printf("%d linktmp %d %d\n", i, r, r ? errno : 0);
	}
	close(fd);
}
static int fifo(int dir, const char *p) {
	struct stat st;
	return p != (char *)8 && fstatat(dir, p, &st, 0) == 0 && S_ISFIFO(st.st_mode);
}
static void one(int i) {
	char x[5200], y[5200];
	char *p = path(x), *q;
	int r, d = dirfd_(), d2, f;
	mode_t m = rnd(512);
	unsigned op = rnd(33);
	if (rnd(3)) m |= 0700;
	if (getenv("SHOW")) printf("%d ? op %u dir %d path %.60s\n", i, op, d, p == (char *)8 ? "EFAULT" : p);
#define R(name, expr) do { r = (expr); printf("%d %s %d %d\n", i, name, r, r ? errno : 0); } while (0)
	switch (op) {
	case 0: case 1: case 2: case 3: case 4:
		f = flags_();
		if (fifo(d, p)) f |= O_NONBLOCK;
		if (getenv("SHOW")) printf("%d ? flags %o mode %o\n", i, f, m);
		opened(i, "openat", openat(d, p, f, m));
		break;
	case 5:
		f = flags_();
		if (fifo(AT_FDCWD, p)) f |= O_NONBLOCK;
		opened(i, "open", syscall(SYS_open, p, f, m));
		break;
	case 6: if (!fifo(AT_FDCWD, p)) opened(i, "creat", syscall(SYS_creat, p, m)); break;
	case 7: case 8: {
		struct open_how how[3];
		memset(how, 0, sizeof how);
		f = flags_();
		if (fifo(d, p)) f |= O_NONBLOCK;
		how->flags = f;
		how->mode = f & (O_CREAT | __O_TMPFILE) ? m : rnd(20) ? 0 : m;
		static const int res[] = {0, 0, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV};
		how->resolve = res[rnd(7)];
		if (how->resolve && p != (char *)8 && p[0] == '/') p = "a/b";
		if (getenv("SHOW")) printf("%d ? flags %o mode %o res %llx path %s\n", i, f, m, how->resolve, p == (char *)8 ? "EFAULT" : p);
		int size = rnd(12) ? 24 : rnd(2) ? 8 : 48;
		if (rnd(40) == 0) ((char *)how)[40] = 1;
		opened(i, "openat2", syscall(SYS_openat2, d, p, how, size));
		break;
	}
	case 9: case 10: R("mkdirat", mkdirat(d, p, m)); break;
	case 11: R("mkdir", syscall(SYS_mkdir, p, m | 0700)); break;
	case 12: R("unlinkat", unlinkat(d, p, rnd(2) ? AT_REMOVEDIR : 0)); break;
	case 13: R("unlink", syscall(SYS_unlink, p)); break;
	case 14: R("rmdir", syscall(SYS_rmdir, p)); break;
	case 15: case 16: q = path(y); if (getenv("SHOW")) printf("%d ? to %.60s\n", i, q == (char *)8 ? "EFAULT" : q); R("rename", syscall(SYS_rename, p, q)); break;
	case 17: case 18: q = path(y); d2 = dirfd_(); R("renameat2", syscall(SYS_renameat2, d, p, d2, q, rnd(3) ? 0 : rnd(4))); break;
	case 19: q = path(y); R("link", syscall(SYS_link, p, q)); break;
	case 20: q = path(y); d2 = dirfd_(); R("linkat", linkat(d, p, d2, q, rnd(2) ? AT_SYMLINK_FOLLOW : rnd(5) ? 0 : 0x40)); break;
	case 21: case 22: q = path(y); if (q == (char *)8 || !q[0] || !strncmp(q, "/proc/", 6)) q = "a"; R("symlinkat", symlinkat(q, d, p)); break;
	case 23: q = names[rnd(12)]; R("symlink", symlink(q, p)); break;
	case 24: R("truncate", truncate(p, rnd(50) ? rnd(20) : -1)); break;
	case 25: R("fchmodat", fchmodat(d, p, m | 0600, 0)); break;
	case 26: R("chmod", chmod(p, m | 0700)); break;
	case 27: R("chown", rnd(2) ? fchownat(d, p, rnd(2) ? -1 : getuid(), getgid(), rnd(2) ? AT_SYMLINK_NOFOLLOW : 0) : chown(p, rnd(5) ? -1 : 0, -1)); break;
	case 28: {
		mode_t old = umask(rnd(512) & 077);
		printf("%d umask %o\n", i, old);
		break;
	}
	case 29: R("mknodat", mknodat(d, p, rnd(2) ? S_IFREG | m : rnd(3) ? S_IFIFO | m : S_IFSOCK | m, 259)); break;
	case 30: {
		int at = rnd(4);
		if (rnd(3) == 0) { f = open(rnd(2) ? "." : p, O_RDONLY | O_DIRECTORY | O_NONBLOCK); if (f >= 0) { int keep = 20 + at; dup2(f, keep); close(f); fds[at] = keep; } }
		else R("chdir", chdir(p));
		break;
	}
	case 31: R("chdirtop", chdir(top)); break;
	case 32: {
		f = openat(d, p, O_RDONLY | O_NONBLOCK);
		if (f >= 0) { R("fchmod", fchmod(f, m | 0700)); R("fchown", fchown(f, -1, getgid())); R("ftruncate", ftruncate(f, 3)); close(f); }
		break;
	}
	}
}
int main(int argc, char **argv) {
	/* It changes modes and names wherever ".." takes it: only for an ordinary user in a directory of his own. */
	if (argc != 3 || getuid() == 0) return 2;
	state = strtoull(argv[1], 0, 10) * 2654435761u + 12345;
	int count = atoi(argv[2]);
	getcwd(top, sizeof top);
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	for (int i = 0; i < 4; i++) { fds[i] = 20 + i; int f = open(".", O_RDONLY | O_DIRECTORY); dup2(f, 20 + i); close(f); }
	for (int i = 0; i < count; i++) {
		if (rnd(50) == 0) {
			/* A child, with the umask and directory it inherits, and then its own. */
			fflush(stdout);
			int pid = fork();
			if (pid == 0) {
				for (int k = 0; k < 5; k++) one(i);
				fflush(stdout);
				_exit(0);
			}
			waitpid(pid, 0, 0);
			rnd(2);
			continue;
		}
		one(i);
		if (rnd(60) == 0) chdir(top);
	}
	fflush(stdout);
	return 0;
}
