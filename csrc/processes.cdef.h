/* Child processes. */

enum pa_spawn_flags {
  PA_SETUID = 1,
  PA_SETGID = 2,
  PA_DETACHED = 4
};

/* Returns a slot, or an error, that of exec included. The lists end with NULL;
 * env NULL: ours. stdio: three descriptors; -1: /dev/null. They stay the
 * caller's. */
int pa_spawn(pa_loop *loop, const char *path, char **args, char **env,
             const char *directory, const int *stdio, int flags, uint32_t uid,
             uint32_t gid);
int pa_process_pid(pa_loop *loop, int slot);
/* Returns 0 or an error: UV_ESRCH if the child has exited, though Python may
 * not have heard of it. Its pid may be another's by then. */
int pa_process_kill(pa_loop *loop, int slot, int signum);
