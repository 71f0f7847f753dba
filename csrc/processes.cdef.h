/* Child processes. */

enum pa_spawn_flags {
  PA_SETUID = 1,
  PA_SETGID = 2,
  PA_DETACHED = 4
};

/* Starts a child. Returns a slot, or an error, which may be that of exec. args
 * and env end with NULL; env itself is NULL for our environment. stdio: three
 * descriptors, which stay the caller's; -1: /dev/null. uid and gid count with
 * their flags only. */
int pa_spawn(pa_loop *loop, const char *path, char **args, char **env,
             const char *directory, const int *stdio, int flags, uint32_t uid,
             uint32_t gid);
int pa_process_pid(pa_loop *loop, int slot);
/* Returns 0 or an error: UV_ESRCH if the loop has seen the child's exit, though
 * Python may not have walked its record yet. No signal is sent then, because
 * the pid may be another process's. */
int pa_process_kill(pa_loop *loop, int slot, int signum);
