/* Watches of files and directories. */
/* Returns a slot, or an error. The path is absolute. PA_FS_CHANGED tells what
 * happens; after one with an error nothing is watched any more. */
int pa_fs_event_start(pa_loop *loop, const char *path);
/* The names of PA_FS_CHANGED, until the next pa_run. */
const char *pa_text(pa_loop *loop);
