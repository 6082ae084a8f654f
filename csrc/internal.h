/* How the files of the core share functions and tables. In the amalgamation, which is one file, these are static. */
#ifndef GDM_INTERNAL_H
#define GDM_INTERNAL_H

#ifndef GDM_INTERNAL
#define GDM_INTERNAL              /* a function, or the definition of a table */
#define GDM_INTERNAL_TABLE extern /* the declaration of a table */
#endif

#endif
