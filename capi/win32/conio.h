/* conio.h: keys, without waiting for the end of a line. */
#ifndef WINDIVERT_WIN32_CONIO_H
#define WINDIVERT_WIN32_CONIO_H

#ifdef __cplusplus
extern "C" {
#endif

int _kbhit(void);
int _getch(void);  /* EOF at the end of the input */
int _getche(void); /* with an echo */
int _putch(int c);
#define kbhit _kbhit
#define getch _getch
#define getche _getche
#define putch _putch

#ifdef __cplusplus
}
#endif

#endif
