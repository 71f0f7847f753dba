/* Child processes. */

enum pa_spawn_flags {
  PA_SETUID = 1,
  PA_SETGID = 2,
  PA_DETACHED = 4
};

/* What the start of a child has made so far. It stands in C, because an
 * exception of a signal handler's may come before Python has stored a result.
 * Each function that fails has undone everything. */
typedef struct {
  int stdio[3];  /* the child's descriptors; -1: /dev/null */
  int pipes[3];  /* slots of our ends of pipes; -1: it is no pipe */
  int process;   /* slot; -1: the child is not started */
} pa_spawning;

/* Makes a pipe for a standard stream of the child, and reads our end if that is
 * an output. Returns 0 or an error. */
int pa_spawn_pipe(pa_loop *loop, pa_spawning *spawning, int fd);
/* Starts the child. Returns 0 or an error, which may be that of exec. args and
 * env end with NULL; env itself is NULL for our environment. uid and gid count
 * with their flags only. */
int pa_spawn(pa_loop *loop, pa_spawning *spawning, const char *path,
             char **args, char **env, const char *directory, int flags,
             uint32_t uid, uint32_t gid);
/* Closes the child's ends of pipes, which would keep them from their end. */
void pa_spawn_end(pa_loop *loop, pa_spawning *spawning);
/* Kills the child, if it is started, and closes everything. */
void pa_spawn_undo(pa_loop *loop, pa_spawning *spawning);
int pa_process_pid(pa_loop *loop, int slot);
/* Returns 0 or an error: UV_ESRCH if the loop has seen the child's exit, though
 * Python may not have walked its record yet. No signal is sent then, because
 * the pid may be another process's. */
int pa_process_kill(pa_loop *loop, int slot, int signum);
