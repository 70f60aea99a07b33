// Which letters do TeX's names stand for? Tables, by kind.

const table = (tag, text) => {
  return text.trim().split(/\s+/).map((pair) => {
    const [name, letter] = pair.split("=");
    return [name, [tag, letter]];
  });
};

const LETTERS = `
  alpha=\u03b1 beta=\u03b2 gamma=\u03b3 delta=\u03b4 epsilon=\u03f5 varepsilon=\u03b5 zeta=\u03b6
  eta=\u03b7 theta=\u03b8 vartheta=\u03d1 iota=\u03b9 kappa=\u03ba lambda=\u03bb mu=\u03bc
  nu=\u03bd xi=\u03be pi=\u03c0 varpi=\u03d6 rho=\u03c1 varrho=\u03f1 sigma=\u03c3
  varsigma=\u03c2 tau=\u03c4 upsilon=\u03c5 phi=\u03d5 varphi=\u03c6 chi=\u03c7 psi=\u03c8
  omega=\u03c9 Gamma=\u0393 Delta=\u0394 Theta=\u0398 Lambda=\u039b Xi=\u039e Pi=\u03a0
  Sigma=\u03a3 Upsilon=\u03a5 Phi=\u03a6 Psi=\u03a8 Omega=\u03a9 infty=\u221e partial=\u2202
  nabla=\u2207 hbar=\u210f ell=\u2113 Re=\u211c Im=\u2111 aleph=\u2135 emptyset=\u2205
  varnothing=\u2205 angle=\u2220 top=\u22a4 bot=\u22a5 ldots=\u2026 dots=\u2026 cdots=\u22ef
  vdots=\u22ee ddots=\u22f1 degree=\u00b0 prime=\u2032 imath=\u0131 jmath=\u0237 square=\u25a1
  blacksquare=\u25a0 checkmark=\u2713 triangle=\u25b3 dagger=\u2020 S=\u00a7 $=$ %=% #=# &=& _=_`;

const OPERATORS = `
  times=\u00d7 div=\u00f7 cdot=\u22c5 pm=\u00b1 mp=\u2213 ast=\u2217 star=\u22c6 circ=\u2218
  bullet=\u2219 oplus=\u2295 ominus=\u2296 otimes=\u2297 odot=\u2299 cup=\u222a cap=\u2229
  setminus=\u2216 wedge=\u2227 land=\u2227 vee=\u2228 lor=\u2228 neg=\u00ac lnot=\u00ac
  forall=\u2200 exists=\u2203 nexists=\u2204 in=\u2208 notin=\u2209 ni=\u220b subset=\u2282
  supset=\u2283 subseteq=\u2286 supseteq=\u2287 subsetneq=\u228a leq=\u2264 le=\u2264 geq=\u2265
  ge=\u2265 ll=\u226a gg=\u226b neq=\u2260 ne=\u2260 equiv=\u2261 sim=\u223c simeq=\u2243
  approx=\u2248 cong=\u2245 propto=\u221d mid=\u2223 nmid=\u2224 parallel=\u2225 perp=\u27c2
  vdash=\u22a2 models=\u22a8 to=\u2192 rightarrow=\u2192 leftarrow=\u2190 gets=\u2190
  leftrightarrow=\u2194 Rightarrow=\u21d2 Leftarrow=\u21d0 Leftrightarrow=\u21d4 implies=\u27f9
  impliedby=\u27f8 iff=\u27fa mapsto=\u21a6 longrightarrow=\u27f6 uparrow=\u2191
  downarrow=\u2193 hookrightarrow=\u21aa rightleftharpoons=\u21cc therefore=\u2234
  because=\u2235 langle=\u27e8 rangle=\u27e9 lfloor=\u230a rfloor=\u230b lceil=\u2308
  rceil=\u2309 lbrace={ rbrace=} {={ }=} lvert=| rvert=| vert=| Vert=\u2016 |=\u2016
  lVert=\u2016 rVert=\u2016 backslash=\\ colon=: prec=\u227a succ=\u227b doteq=\u2250
  asymp=\u224d`;

export const SYMBOLS = Object.fromEntries([...table("mi", LETTERS), ...table("mo", OPERATORS)]);

/** Signs that grow, with limits above and below but for integrals. */
export const LARGE = {
  bigcap: "\u22c2", bigcup: "\u22c3", bigoplus: "\u2a01", bigotimes: "\u2a02", bigvee: "\u22c1",
  bigwedge: "\u22c0", coprod: "\u2210", iiint: "\u222d", iint: "\u222c", int: "\u222b",
  oint: "\u222e", prod: "\u220f", sum: "\u2211",
};

export const FUNCTIONS = new Set(("arccos arcsin arctan arg argmax argmin cos cosh cot coth csc "
  + "deg det dim exp gcd hom inf ker lg lim liminf limsup ln log max min mod bmod Pr sec sin sinh "
  + "sup tan tanh").split(" "));

export const SPACES = {
  " ": "0.28em", "!": "-0.17em", ",": "0.17em", ":": "0.22em", ";": "0.28em", enspace: "0.5em",
  qquad: "2em", quad: "1em", "\n": "0.28em",
};

export const ACCENTS = {
  acute: ["\u00b4", "mover"], bar: ["\u00af", "mover"], breve: ["\u02d8", "mover"],
  check: ["\u02c7", "mover"], ddot: ["\u00a8", "mover"], dot: ["\u02d9", "mover"],
  grave: ["`", "mover"], hat: ["^", "mover"], overline: ["\u203e", "mover"],
  overrightarrow: ["\u2192", "mover"], tilde: ["\u02dc", "mover"], underline: ["_", "munder"],
  vec: ["\u2192", "mover"], widehat: ["^", "mover"], widetilde: ["\u02dc", "mover"],
};

export const FONTS = {
  boldsymbol: "bold", mathbb: "double", mathbf: "bold", mathcal: "calligraphic",
  mathit: "italic", mathrm: "upright", mathscr: "calligraphic",
  mathsf: "upright", mathtt: "upright",
};
